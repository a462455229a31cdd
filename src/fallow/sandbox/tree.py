"""Processes of one sandbox as the host sees them, read from /proc."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator
from pathlib import Path

_DELETED = " (deleted)"


def children(pid: int) -> list[int]:
    """Oldest first; none where it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            found += [int(word) for word in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
        except (OSError, ValueError):
            continue
    return found


def descendants(pid: int, limit: int = 4096) -> Iterator[int]:
    """All below, nearest first, at most `limit`."""
    todo = children(pid)
    seen = 0
    while todo and seen < limit:
        current = todo.pop(0)
        seen += 1
        yield current
        todo += children(current)


def inner_pid(pid: int) -> int:
    """What a process calls itself in its innermost pid namespace; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except (OSError, ValueError):
        pass
    return 0


def find_inner(init_pid: int, number: int) -> int:
    """The host's number of the process that is `number` inside the pid namespace of `init_pid`; 0: gone."""
    if number == 1:
        return init_pid
    return next((pid for pid in descendants(init_pid) if inner_pid(pid) == number), 0)


def resident_bytes(init_pid: int) -> int:
    """Private and shared memory resident in all processes below; shared pages count once for each of them."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for pid in descendants(init_pid):
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except (OSError, ValueError, IndexError):
            continue
    return total


def unlinked_bytes(init_pid: int, apart: Collection[int] = ()) -> int:
    """Disk or memory held by files that have no name any more, or never had one, but are still open or mapped in
    processes below. `apart`: devices whose files do not count."""
    seen: dict[tuple[int, int], int] = {}
    for pid in descendants(init_pid):
        _open_files(pid, seen)
        _mapped_files(pid, seen)
    return sum(size for (device, _), size in seen.items() if device not in apart)


def private_and_memory_files_bytes(init_pid: int) -> int:
    """What a kernel in user space holds: its programs' memory lies in a file, whether they map it just now or not."""
    seen: dict[tuple[int, int], int] = {}
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for pid in descendants(init_pid):
        _open_files(pid, seen)
        try:
            fields = Path(f"/proc/{pid}/statm").read_text().split()
            total += (int(fields[1]) - int(fields[2])) * page
        except (OSError, ValueError, IndexError):
            continue
    return total + sum(size for (device, _), size in seen.items() if device == memory_device())


@functools.cache
def memory_device() -> int:
    """The file system that all memory files of the machine are on."""
    descriptor = os.memfd_create("fallow")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _open_files(pid: int, seen: dict[tuple[int, int], int]) -> None:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            status = os.stat(f"{folder}/{name}")
        except OSError:
            continue
        if status.st_nlink == 0:
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512


def _mapped_files(pid: int, seen: dict[tuple[int, int], int]) -> None:
    """Mappings whose descriptor was closed: what is mapped bounds what can be filled."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if not line.endswith(_DELETED):
            continue
        words = line.split(None, 5)
        first, _, last = words[0].partition("-")
        major, _, minor = words[3].partition(":")
        place = (os.makedev(int(major, 16), int(minor, 16)), int(words[4]))
        if "s" in words[1]:
            seen.setdefault(place, int(last, 16) - int(first, 16))
