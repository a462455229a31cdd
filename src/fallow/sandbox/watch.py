"""A thread beside each sandbox: takes its log, bounded, and ends it when it holds more disk or memory than it may."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fallow.sandbox.folders import usage_bytes
from fallow.sandbox.kernel_objects import excess
from fallow.sandbox.tree import (
    Hidden,
    may_hide,
    memory_device,
    private_and_memory_files_bytes,
    resident_bytes,
    root_of,
    unlinked_bytes,
)

LOG_BYTES = 4 << 20
"""Kept of what a program prints; the rest is read and dropped, so that it is not held up."""
EVERY_S = 0.25
GLANCE_S = 0.05
"""How often the file system's free space is looked at, which costs microseconds: where more of it has gone than half of
what may still be written, folders and open files are measured at once."""
DEEP_EVERY = 4
"""Open files and memory are looked at every so many rounds."""
TMP_INODES = 100_000
SHORT_SHARE = 0.015
"""Of the machine's memory, where no control group bounds ours."""


def _memory_is_short() -> bool:
    """Socket buffers and such are in no process's account."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return False
    return available < total * SHORT_SHARE


class Watch:
    """Runs until the log pipe ends and `stop` was called. `why` says what it ended the sandbox for; '': nothing."""

    def __init__(
        self,
        init_pid: int,
        folders: tuple[str, ...],
        disk_bytes: int,
        memory_bytes: int,
        temporary: tuple[str, ...],
        log: int,
        log_path: str,
        end: Callable[[], None],
        apart: frozenset[int] = frozenset(),
        *,
        kernel: bool = False,
        by_user: bool = False,
    ) -> None:
        """`memory_bytes` 0: something better bounds memory. `log`: the reading end of a pipe, taken over; -1: none.
        `temporary`: paths inside whose file systems' inodes are bounded here. `apart`: devices whose unlinked files are
        no disk: what is bounded by itself, and memory files, where a kernel in user space keeps its programs' memory in
        one. `kernel`: sockets are counted, and with `by_user` pipes and epoll instances (`kernel_objects`)."""
        self.why = ""
        self.disk_bytes = 0
        """Found by the last look."""
        self._unlinked_bytes = 0
        self._init_pid = init_pid
        self._folders = folders
        self._disk_bytes = disk_bytes
        self._memory_bytes = memory_bytes
        self._temporary = temporary
        self._log = log
        self._log_path = log_path
        self._end = end
        self._is_on = True
        self._apart = apart
        self._kernel, self._by_user = kernel, by_user
        self._margin = disk_bytes
        """What may be written beyond what the last look found."""
        self._free_then = self._free_bytes()
        """At the last look."""
        self._free_first = self._free_then
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="sandbox-watch", daemon=True)
        self._thread.start()

    def guard(self, on: bool) -> None:
        """Look, or only keep the log, from now on."""
        self._is_on = on
        with contextlib.suppress(OSError):
            os.write(self._stop, b"!")

    def stop(self) -> None:
        """After the last process has ended: waits until the log is written."""
        with contextlib.suppress(OSError):
            os.close(self._stop)
        self._stop = -1
        self._thread.join(10.0)

    def _run(self) -> None:
        written = 0
        sink = -1
        if self._log_path:
            sink = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        stopping = False
        rounds = 0
        next_look = time.monotonic() + EVERY_S
        not_before = 0.0
        sources = [descriptor for descriptor in (self._log, self._wake) if descriptor >= 0]
        try:
            while sources:
                pause: float | None = None
                if self._is_on or stopping:
                    pause = max(0.0, next_look - time.monotonic())
                    if self._disk_bytes:
                        pause = min(pause, GLANCE_S)
                ready, _, _ = select.select(sources, [], [], pause)
                if self._wake in ready and not os.read(self._wake, 64):
                    stopping = True
                    sources.remove(self._wake)
                if self._log in ready:
                    data = os.read(self._log, 1 << 16)
                    if not data:
                        sources.remove(self._log)
                    elif sink >= 0 and written < LOG_BYTES:
                        written += os.write(sink, data[: LOG_BYTES - written])
                elif stopping:
                    # Nothing is left that could write, or something outside holds the pipe.
                    break
                if not self._is_on or stopping:
                    continue
                begun = time.monotonic()
                hurried = begun >= not_before and self._is_filling()
                if begun >= next_look or hurried:
                    self._look(hurried or rounds % DEEP_EVERY == 0)
                    rounds += 1
                    took = time.monotonic() - begun
                    not_before = time.monotonic() + 4 * took
                    next_look = time.monotonic() + max(EVERY_S, 4 * took)
        finally:
            for descriptor in (self._log, self._wake, sink):
                if descriptor >= 0:
                    os.close(descriptor)

    def _free_bytes(self) -> int:
        """Of the file systems that the folders are on."""
        free: dict[int, int] = {}
        for folder in self._folders if self._disk_bytes else ():
            with contextlib.suppress(OSError):
                status = os.statvfs(folder)
                free[os.stat(folder).st_dev] = status.f_bfree * status.f_frsize
        return sum(free.values())

    def _is_filling(self) -> bool:
        """Others may be writing there too: it only says that a look is due."""
        return bool(self._disk_bytes) and self._free_then - self._free_bytes() > self._margin // 2

    def _look(self, deep: bool) -> None:
        if not self.why:
            try:
                self._measure(deep)
            except Hidden as hidden:
                self.why = str(hidden)
            except OSError as error:
                self.why = f"what it holds cannot be measured: {error}"
        if self.why:
            self._end()

    def _may_hide(self) -> bool:
        """Others write on that disk too: memory that is shared between processes is no place for what they write."""
        return may_hide(self._init_pid, self._apart | {memory_device()})

    def _measure(self, deep: bool) -> None:
        """Raises Hidden."""
        if self._disk_bytes:
            free = self._free_bytes()
            used = sum(usage_bytes(folder, self._disk_bytes) for folder in self._folders)
            if deep:
                self._unlinked_bytes = unlinked_bytes(self._init_pid, self._apart)
                used += self._unlinked_bytes
                self._free_then = free
                self._margin = max(0, self._disk_bytes - used)
            self.disk_bytes = used if deep else used + self._unlinked_bytes
            if used > self._disk_bytes:
                self.why = (
                    f"it wrote {used / 1e6:.0f} MB of the {self._disk_bytes / 1e6:.0f} MB of disk that it may use"
                )
            elif deep and self._free_first - free > used + self._disk_bytes and self._may_hide():
                self.why = "the disk loses more than can be measured, while it holds files that cannot be"
        if deep and self._memory_bytes and not self.why:
            measure = private_and_memory_files_bytes if memory_device() in self._apart else resident_bytes
            held = measure(self._init_pid)
            if held > self._memory_bytes:
                limit = self._memory_bytes / 1e6
                self.why = f"it held {held / 1e6:.0f} MB of the {limit:.0f} MB of memory that it may use"
            elif _memory_is_short():
                self.why = "the machine has no memory left, and what this holds of the kernel's cannot be told"
        if deep and self._kernel and not self.why:
            self.why = excess(self._init_pid, self._by_user)
        root = root_of(self._init_pid) if deep and self._temporary and not self.why else ""
        for path in self._temporary if root else ():
            with contextlib.suppress(OSError):
                status = os.statvfs(f"{root}{path}")
                if status.f_files - status.f_ffree > TMP_INODES:
                    self.why = f"it made more than {TMP_INODES} files in {path}"
