"""Real pools for tests: `fallow up` in a home folder of its own, and proof that nothing of it outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

DEADLINE_S = 90.0
"""How long a test waits for a state that must come. Two loaded cores may be slow; a failure may take its time."""

MARK = "FALLOW_TEST_MARK"
REPOSITORY = Path(__file__).parents[1]


def wait_for(what: str, condition: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Poll until the condition holds and return what it returned. Fails the test in words."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s:g} s for {what}")
        time.sleep(0.02)


def read_line(process: subprocess.Popen[str], deadline_s: float = DEADLINE_S) -> str:
    """The next line that a script prints; '' if none comes in time or it has ended."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], deadline_s)[0]:
        return ""
    return process.stdout.readline().strip()


def marked_processes(mark: str) -> list[psutil.Process]:
    """Living processes whose environment carries the mark, this one aside."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def describe(processes: list[psutil.Process]) -> str:
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            lines.append(f"{process.pid} {' '.join(process.cmdline())[:160]}")
    return "\n".join(lines)


class Pool:
    """A running `fallow up`. `home` is its FALLOW_HOME; `env` is what a client of it runs with."""

    def __init__(self, home: Path, *arguments: str, slots: int = 2, **variables: str) -> None:
        self.home = home
        self.mark = uuid.uuid4().hex
        self.arguments = ("--slots", str(slots), *arguments)
        self.env = client_env(home, **variables)
        self.output = home.parent / f"{home.name}-up.txt"
        self.process: subprocess.Popen[bytes] | None = None
        self.joined: list[subprocess.Popen[bytes]] = []

    # ------------------------------------------------------------ life

    def start(self) -> Pool:
        """Start and wait until it says that it is up."""
        self.launch()
        wait_for("the pool to be up", self._is_up)
        return self

    def launch(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.output, "ab") as output:
            output.truncate(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fallow.cli.main", "up", *self.arguments],
                env={**self.env, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"`fallow up` ended with {self.process.returncode}:\n{self.said()}")
        return " is up at " in self.said()

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as a user would, and return its exit code."""
        assert self.process is not None
        for joined in self.joined:
            if joined.poll() is None:
                joined.send_signal(signal.SIGTERM)
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        for joined in self.joined:
            joined.wait(DEADLINE_S)
        return code

    def assert_nothing_left(self) -> None:
        """No process of this pool is alive."""
        wait_for_none(self.mark)

    def close(self) -> None:
        """End whatever is left, without asking."""
        for process in marked_processes(self.mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for started in [self.process, *self.joined]:
            if started is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(10)

    # ------------------------------------------------------------ its parts

    @property
    def url(self) -> str:
        """TOKEN@HOST:PORT"""
        return str(json.loads((self.home / "pool.json").read_text())["address"])

    def child(self, name: str) -> psutil.Process:
        """The supervisor's child: 'nats-server', 'coordinator' or 'local node'."""
        assert self.process is not None
        parts = []
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                parts.append((process.create_time(), process.pid, process, process.name()))
        parts.sort(key=lambda part: part[:2])
        servers = [part[2] for part in parts if part[3] == "nats-server"]
        others = {self._part_name(part[2]): part[2] for part in parts if part[3] != "nats-server"}
        found = servers[0] if name == "nats-server" and servers else others.get(name)
        if found is None:
            raise AssertionError(f"no {name} among the children:\n{describe([part[2] for part in parts])}")
        return found

    def _part_name(self, process: psutil.Process) -> str:
        """By the log that it writes to, since a forked child has its parent's command line."""
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{process.pid}/fd/2")
            return {"coordinator.log": "coordinator", "agent.log": "local node"}.get(Path(target).name, target)
        return "?"

    def kill(self, name: str) -> int:
        """SIGKILL a part and return its pid once it is dead."""
        process = wait_for(f"the {name}", lambda: self._child_or_none(name))
        process.kill()
        with contextlib.suppress(psutil.Error):
            process.wait(10)
        return int(process.pid)

    def _child_or_none(self, name: str) -> psutil.Process | None:
        try:
            return self.child(name)
        except (AssertionError, psutil.Error):
            return None

    # ------------------------------------------------------------ clients

    def join(
        self,
        name: str,
        slots: int = 1,
        home: Path | None = None,
        *arguments: str,
        before: Sequence[str] = (),
        **variables: str,
    ) -> subprocess.Popen[bytes]:
        """Start a `fallow join` of this pool, with a home of its own, further arguments and environment variables.
        `before`: words of a command that starts it."""
        own = home or self.home.parent / f"{self.home.name}-node-{name}"
        lend_always(own)
        process = subprocess.Popen(
            [
                *before,
                sys.executable,
                "-m",
                "fallow.cli.main",
                "join",
                self.url,
                "--name",
                name,
                "--slots",
                str(slots),
                *arguments,
            ],
            env={**client_env(own, **variables), MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=open(f"{own}.txt", "wb"),  # noqa: SIM115
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=REPOSITORY if before else None,
        )
        self.joined.append(process)
        return process

    def cli(self, *arguments: str, timeout_s: float = DEADLINE_S, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `fallow ...` as a user of this pool."""
        return subprocess.run(
            [sys.executable, "-m", "fallow.cli.main", *arguments],
            env={**self.env, **options.pop("env", {})},
            stdin=options.pop("stdin", subprocess.DEVNULL),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            **options,
        )

    def json(self, *arguments: str) -> Any:
        """What `fallow ... --json` prints."""
        return ask_json(self.env, *arguments)

    def script(self, text: str, *arguments: str, timeout_s: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
        """Run a Python script as a user of this pool."""
        path = self._write_script(text)
        return subprocess.run(
            [sys.executable, str(path), *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def start_script(self, text: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python script as a user of this pool; its output is piped."""
        path = self._write_script(text)
        return subprocess.Popen(
            [sys.executable, "-u", str(path), *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _write_script(self, text: str) -> Path:
        folder = self.home.parent / f"script-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        path = folder / "script.py"
        path.write_text(textwrap.dedent(text))
        return path


def ask_json(env: dict[str, str], *arguments: str) -> Any:
    """What `fallow ... --json` prints in that environment. The command runs in this process: tests that wait for a
    state ask again and again, and a new interpreter each time would take the processor from what they wait for."""
    from typer.testing import CliRunner

    from fallow.cli.main import app

    changes: dict[str, str | None] = {name: None for name in os.environ if name not in env}
    done = CliRunner().invoke(app, [*arguments, "--json"], env={**changes, **env})
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    return json.loads(done.stdout)


def lend_always(home: Path) -> None:
    """Have agents of this home work whatever else the machine does: tests load it themselves."""
    settings = home / "agent" / "node.toml"
    settings.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not settings.exists():
        settings.write_text('[owner]\nwatch = false\nbusy_cpu = "100 %"\nresume_cpu = "100 %"\n')


def client_env(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user whose FALLOW_HOME this is and who has no other pool."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FALLOW_", "PYTEST_"))}
    return {**kept, "FALLOW_HOME": str(home), "PYTHONUNBUFFERED": "1", **variables}


def wait_for_none(mark: str) -> None:
    """Fail with a list unless all processes of that mark end soon."""
    end = time.monotonic() + 45
    while time.monotonic() < end:
        if not marked_processes(mark):
            return
        time.sleep(0.05)
    left = marked_processes(mark)
    assert not left, f"left behind:\n{describe(left)}"


@contextlib.contextmanager
def running_pool(home: Path, *arguments: str, slots: int = 2, **variables: str) -> Iterator[Pool]:
    """A pool for the length of a block; afterwards it is ended and nothing of it may be left."""
    pool = Pool(home, *arguments, slots=slots, **variables)
    try:
        yield pool.start()
        if pool.process is not None and pool.process.poll() is None:
            pool.stop()
        pool.assert_nothing_left()
    finally:
        pool.close()
