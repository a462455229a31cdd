"""python -m bench sandbox: what the sandbox costs over a plain process: time to start, and CPU work inside."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from fallow.model.lending import SandboxSettings
from fallow.sandbox.choose import BACKENDS
from fallow.sandbox.protocol import Limits, Mount, Program, Sandbox
from fallow.sandbox.system import interpreter

START_LIMIT_MS = 50.0
WORK_LIMIT = 0.97
_WITHIN_S = 120.0

_READY = "open('ready', 'w').close()\nimport time\ntime.sleep(600)"
_WORK = """
import hashlib, time
begun = time.perf_counter()
total = 0
for number in range(1_500_000):
    total += number * number % 7
data = b'x' * 65536
for _ in range(3000):
    data = hashlib.sha256(data).digest() * 2048
words = {}
for number in range(300_000):
    words[str(number)] = number
open('took', 'w').write(str(time.perf_counter() - begun))
"""


def _program(folder: Path, code: str) -> Program:
    return Program(
        argv=(interpreter(), "-I", "-S", "-c", code),
        environment={},
        cwd=str(folder),
        mounts=(Mount(str(folder), writable=True),),
        limits=Limits(memory_bytes=1 << 30),
    )


def _start_ms(sandbox: Sandbox) -> float:
    """Until the program inside has written its first file."""
    with tempfile.TemporaryDirectory() as name:
        ready = Path(name) / "ready"
        begun = time.perf_counter()
        running = sandbox.start(_program(Path(name), _READY))
        while not ready.exists():
            time.sleep(0.0005)
        took = time.perf_counter() - begun
        running.close()
        return took * 1e3


def _work_s(sandbox: Sandbox) -> float:
    with tempfile.TemporaryDirectory() as name:
        running = sandbox.start(_program(Path(name), _WORK))
        with contextlib.closing(running):
            running.wait(_WITHIN_S)
        return float((Path(name) / "took").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench sandbox", description=__doc__)
    parser.add_argument("--repeat", type=int, default=9, help="rounds, each backend in turn; medians count")
    names = [name for name in BACKENDS if name != "process"]
    parser.add_argument("backends", nargs="*", default=names, metavar="backend", help=f"of {', '.join(names)}; all")
    arguments = parser.parse_args()
    repeat = arguments.repeat
    plain = BACKENDS["process"](SandboxSettings())
    failed = False
    for name in arguments.backends:
        sandbox = BACKENDS[name](SandboxSettings(backend=name))
        if not sandbox.probe().works:
            print(f"{name}: {sandbox.probe().words}")
            continue
        starts = [(_start_ms(plain), _start_ms(sandbox)) for _ in range(repeat)]
        works = [(_work_s(plain), _work_s(sandbox)) for _ in range(repeat)]
        over = statistics.median(inside for _, inside in starts) - statistics.median(outside for outside, _ in starts)
        share = statistics.median(outside for outside, _ in works) / statistics.median(inside for _, inside in works)
        print(f"{name}: start {over:.1f} ms over a plain process (limit {START_LIMIT_MS:g} ms)")
        print(f"{name}: CPU work at {share:.1%} of a plain process (at least {WORK_LIMIT:.0%})")
        failed |= name == "bubblewrap" and (over > START_LIMIT_MS or share < WORK_LIMIT)
    return int(failed)
