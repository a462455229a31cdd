"""What every process is doing, where a step of a run takes too long: a run never waits without saying for what."""

from __future__ import annotations

import contextlib
import faulthandler
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.pool import marked_processes

DUMP_S = 20.0


def stacks(mark: str) -> str:
    """The Python stacks of all processes of a pool, by py-spy (of the development group)."""
    program = Path(sys.executable).with_name("py-spy")
    found = []
    for process in marked_processes(mark):
        with contextlib.suppress(psutil.Error, subprocess.TimeoutExpired):
            words = " ".join(process.cmdline())[:200]
            if "python" not in Path(process.exe()).name:
                found.append(f"{process.pid} {process.status()} {words}")
                continue
            if not program.exists():
                found.append(f"{process.pid} {process.status()} {words} (no py-spy beside {sys.executable})")
                continue
            dump = subprocess.run(
                [program, "dump", "--nonblocking", "--pid", str(process.pid)],
                capture_output=True, text=True, timeout=DUMP_S,
            )  # fmt: skip
            found.append(f"{process.pid} {process.status()} {words}\n{dump.stdout or dump.stderr}")
    return "\n\n".join(found)


@contextlib.contextmanager
def limited(
    what: str, limit_s: float, folder: Path, mark: str, wrong: list[str], end: Callable[[], None]
) -> Iterator[None]:
    """Where `what` takes longer than `limit_s`: write what all processes are doing, and this one too, to a file in
    `folder`, say so in `wrong`, and `end` the pool, so that nothing is waited for any more."""
    over = threading.Event()

    def watch() -> None:
        if over.wait(limit_s):
            return
        path = folder / f"stuck-{what.replace(' ', '-')}.txt"
        with path.open("w") as file:
            file.write(f"{what} has taken {limit_s:g} s; this process:\n")
            file.flush()
            faulthandler.dump_traceback(file)
            file.write(f"\n{stacks(mark)}\n")
        wrong.append(f"{what} took more than {limit_s:g} s: what every process did then is in {path}")
        end()

    thread = threading.Thread(target=watch, name="stuck", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
