"""A program in gVisor: its kernel is one process of the host's, its processes are none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fallow.sandbox.cgroups import Group
from fallow.sandbox.jail import CLOSE_WITHIN_S, ORDER, Jail
from fallow.sandbox.sweep import started
from fallow.sandbox.tree import children, descendants

_ANSWER = struct.Struct("<IQ")
"""As the launcher has it."""


def sentry(runsc_pid: int) -> int:
    """gVisor's kernel below its runner; the runner itself where it is gone already."""
    for pid in children(runsc_pid):
        with contextlib.suppress(OSError):
            if b"boot" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
    return runsc_pid


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End the runner with its kernel and all that these have started, and wait for that."""
    below = _kill(process)
    process.wait()
    _await_gone(below)


def _kill(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Returns what was killed beside the runner: when it started, by pid."""
    below = {pid: started(pid) for pid in descendants(process.pid)}
    if process.poll() is None:
        process.kill()
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return below


def _await_gone(pids: dict[int, int]) -> None:
    deadline = time.monotonic() + CLOSE_WITHIN_S
    while any(when and started(pid) == when and not _is_zombie(pid) for pid, when in pids.items()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.002)


def _is_zombie(pid: int) -> bool:
    """It holds nothing any more; when it is reaped is up to the machine's first process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


class GvisorJail(Jail):
    """`init_pid` is the runner, below which all else is; `pid` gVisor's kernel."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pid: int,
        group: Group | None,
        undo: Callable[[], None],
        control: socket.socket,
    ) -> None:
        """`control`: to the launcher inside, without blocking."""
        super().__init__(process, process.pid, pid, group, undo)
        self._control = control
        self._killed: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._asked: set[int] = set()
        self._answers = b""

    def signal(self, number: int) -> None:
        self._order(number, 0)

    def kill(self) -> None:
        self._killed |= _kill(self._process)

    def host_pid(self, inner_pid: int) -> int:
        """gVisor's kernel, whatever the number inside: it is all that the host sees. 0 where it has ended."""
        return self._pid if self._process.poll() is None else 0

    def memory_kills(self) -> int:
        """As far as a control group counts them."""
        return self._group.memory_kills() if self._group is not None else 0

    def private_bytes(self, inner_pid: int) -> int:
        """As of the last time that it was asked for, which asks anew: the answer comes from the launcher inside."""
        with contextlib.suppress(OSError):
            self._answers += self._control.recv(_ANSWER.size * 64)
        while len(self._answers) >= _ANSWER.size:
            pid, held = _ANSWER.unpack(self._answers[: _ANSWER.size])
            self._answers = self._answers[_ANSWER.size :]
            self._asked.discard(pid)
            self._held[pid] = held
            if not held:
                del self._held[pid]
        if inner_pid not in self._asked:
            self._asked.add(inner_pid)
            self._order(0, inner_pid)
        return self._held.get(inner_pid, 0)

    def _order(self, number: int, pid: int) -> None:
        with contextlib.suppress(OSError):
            self._control.send(ORDER.pack(number, pid))

    def close(self) -> None:
        self.kill()
        super().close()
        _await_gone(self._killed)
        self._control.close()
