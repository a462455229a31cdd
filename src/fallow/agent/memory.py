"""Memory of workers and of the machine, so that a task that allocates without end is stopped before the kernel stops
something else."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

RESERVE_SHARE = 0.03
RESERVE_LEAST_BYTES = 256 * 1024 * 1024
FILLED_BYTES_PER_S = 20e9
"""Nothing fills a machine's memory faster than that."""
BLAMED_SHARE = 0.1
"""A worker is only ended for the machine's want of memory if it uses at least this share of all."""
GC_THRESHOLDS = (20_000, 20, 20)


def collect_rarely() -> None:
    """Have this process look for cycles seldom, and never among what it has loaded by now: what an agent makes of
    messages has none to speak of, and each look takes a processor from what it runs."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def private_bytes(pid: int) -> int:
    """Resident memory of a process without files that it maps (those are shared). 0 if it is gone."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/statm") as file:
                fields = file.read().split()
        except OSError:
            return 0
        return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def reserve_bytes(total: int) -> int:
    """What is to stay available on a machine with `total` bytes."""
    return min(max(int(total * RESERVE_SHARE), RESERVE_LEAST_BYTES), total // 10)


def choose_victim(available: int, total: int, used: Mapping[int, int]) -> int | None:
    """The worker (key of `used`, by bytes) to end because memory runs out; None if there is enough, or if no worker
    is to blame."""
    if available >= reserve_bytes(total) or not used:
        return None
    largest = max(used, key=lambda key: used[key])
    return largest if used[largest] >= total * BLAMED_SHARE else None


class MachineMemory:
    """What is left of the machine's memory, or of the control group's that this process is in. Linux; elsewhere it
    is never short, and the system's own means must do."""

    def __init__(self) -> None:
        self.total = 0
        self._group = _limited_group() if sys.platform == "linux" else None
        self.available = 1 << 62
        self.refresh()

    def refresh(self) -> None:
        """Read anew (some 20 microseconds: this is done many times a second)."""
        if sys.platform != "linux":
            return
        try:
            total, available = MEMINFO.read(b"MemTotal:", b"MemAvailable:")
            self.total = total * 1024
            self.available = available * 1024
            if self._group is not None:
                limit = int((self._group / "memory.max").read_text())
                current = int((self._group / "memory.current").read_text())
                stat = _fields(self._group / "memory.stat")
                cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
                self.total = min(self.total, limit)
                self.available = min(self.available, limit - current + cache)
        except (OSError, KeyError, ValueError):
            self.available = 1 << 62  # unknown: leave it to the kernel


class KernelNumbers:
    """A file of lines 'name number ...' that the kernel writes anew for each read; it is opened once for the
    life of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def read(self, *names: bytes) -> list[int]:
        """The numbers of these names. Raises OSError, or ValueError where one is missing."""
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        text = os.pread(self._descriptor, 4096, 0)
        return [int(text[text.index(name) + len(name) :].split(None, 1)[0]) for name in names]


MEMINFO = KernelNumbers(Path("/proc/meminfo"))


def _fields(path: Path) -> dict[str, int]:
    """Lines of 'name number ...'."""
    found: dict[str, int] = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(" ")
        found[name] = int(rest.split()[0])
    return found


def _limited_group() -> Path | None:
    """The innermost control group (v2) around this process that has a memory limit."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = root / own.lstrip("/")
    while True:
        try:
            if (group / "memory.max").read_text().strip() != "max":
                return group
        except OSError:
            pass
        if group == root or root not in group.parents:
            return None
        group = group.parent
