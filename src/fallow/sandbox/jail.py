"""A program that runs below an init process of its own pid namespace, whichever backend made it."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
from collections.abc import Callable

from fallow.sandbox.cgroups import Group
from fallow.sandbox.tree import find_inner
from fallow.sandbox.watch import Watch

CLOSE_WITHIN_S = 10.0
ORDER = struct.Struct("<BI")
"""To a launcher that stays: a signal's number for the program and 0, or 0 and a process that is asked about."""


class Jail:
    """`process`: what was started on the host and ends with the program. `init_pid`: process 1 inside."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        init_pid: int,
        pid: int,
        group: Group | None,
        undo: Callable[[], None] | None = None,
    ) -> None:
        """`undo`: what is left to do when all inside has ended."""
        self._process = process
        self._init_pid = init_pid
        self._pid = pid
        self._group = group
        self._undo = undo
        self.watch: Watch | None = None
        self._ran_out = False
        self._why = ""

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def init_pid(self) -> int:
        return self._init_pid

    @property
    def why(self) -> str:
        if self._why:
            return self._why
        if self.watch is not None and self.watch.why:
            return self.watch.why
        if self._ran_out or (self._group is not None and self._group.out_of_memory()):
            return "it used all the memory that it may use"
        return ""

    @property
    def bounds(self) -> tuple[str, ...]:
        """Controllers of control groups that are in force."""
        return tuple(self._group.bounds) if self._group is not None else ()

    def poll(self) -> int | None:
        return _as_popen(self._process.poll())

    def wait(self, timeout_s: float) -> int:
        status = _as_popen(self._process.wait(timeout_s))
        assert status is not None
        return status

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def kill(self) -> None:
        """With process 1 of a pid namespace the kernel ends all of it."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init_pid, signal.SIGKILL)

    def end(self, why: str) -> None:
        self._why = self._why or why
        self.kill()

    @property
    def disk_bytes(self) -> int:
        return self.watch.disk_bytes if self.watch is not None else 0

    def host_pid(self, inner_pid: int) -> int:
        return find_inner(self._init_pid, inner_pid)

    def guard(self, on: bool) -> None:
        if self.watch is not None:
            self.watch.guard(on)

    def close(self) -> None:
        self.kill()
        try:
            self._process.wait(CLOSE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self.watch is not None:
            self.watch.stop()
        if self._undo is not None:
            self._undo()
            self._undo = None
        if self._group is not None:
            self._ran_out = self._group.out_of_memory()
            self._group.remove()
            self._group = None


def _as_popen(status: int | None) -> int | None:
    """Runners give 128 + N where the program was ended by signal N; Popen gives -N."""
    if status is not None and 128 < status < 128 + signal.NSIG:
        return 128 - status
    return status
