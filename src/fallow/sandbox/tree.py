"""Processes of one sandbox as the host sees them, read from /proc."""

from __future__ import annotations

import contextlib
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


class Hidden(Exception):
    """A program holds files or memory where they cannot be measured; in words that begin with 'it'."""


def root_of(init_pid: int) -> str:
    """A path of the host to the root folder inside; '': there is none (any more). (Of process 1 itself it is shown to
    root alone.)"""
    for pid in descendants(init_pid):
        path = f"/proc/{pid}/root"
        try:
            os.stat(path)
        except OSError:
            continue
        return path
    return ""


def resident_bytes(init_pid: int) -> int:
    """Private and shared memory resident in all processes below; shared pages count once for each of them."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(_memory_pages(pid)[1] * page for pid in descendants(init_pid))


def unlinked_bytes(init_pid: int, apart: Collection[int] = ()) -> int:
    """Disk or memory held by files that have no name any more, or never had one, but are still open or mapped in
    processes below. `apart`: devices whose files do not count. Raises Hidden."""
    seen: dict[tuple[int, int], int] = {}
    for pid in descendants(init_pid):
        place = _alive(pid)
        if place:
            _open_files(place, seen)
            _mapped_files(place, seen)
    return sum(size for (device, _), size in seen.items() if device not in apart)


def private_and_memory_files_bytes(init_pid: int) -> int:
    """What a kernel in user space holds: its programs' memory lies in a file, whether they map it just now or not.
    Raises Hidden."""
    seen: dict[tuple[int, int], int] = {}
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for pid in descendants(init_pid):
        if place := _alive(pid):
            _open_files(place, seen)
        fields = _memory_pages(pid)
        total += (fields[1] - fields[2]) * page
    return total + sum(size for (device, _), size in seen.items() if device == memory_device())


def _memory_pages(pid: int) -> list[int]:
    """Size, resident, shared: of a process, also where its first thread has ended and others go on. Zeros where it is
    gone."""
    for place in _places(pid):
        try:
            fields = [int(word) for word in Path(f"{place}/statm").read_text().split()[:3]]
        except (OSError, ValueError):
            continue
        if len(fields) == 3 and fields[0]:
            return fields
    return [0, 0, 0]


def _places(pid: int) -> Iterator[str]:
    """Of the process, then of its threads."""
    yield f"/proc/{pid}"
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        yield f"/proc/{pid}/task/{thread}"


def _alive(pid: int) -> str:
    """The folder of /proc in which its files and memory are to be seen; '': it has none any more."""
    for place in _places(pid):
        try:
            if not Path(f"{place}/statm").read_text().startswith("0 "):
                return place
        except OSError:
            continue
    return ""


@functools.cache
def memory_device() -> int:
    """The file system that all memory files of the machine are on."""
    descriptor = os.memfd_create("fallow")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _open_files(place: str, seen: dict[tuple[int, int], int]) -> None:
    folder = f"{place}/fd"
    try:
        names = os.listdir(folder)
    except PermissionError:
        _refuse(place)
        return
    except OSError:
        return
    for name in names:
        try:
            status = os.stat(f"{folder}/{name}")
        except OSError:
            continue
        if status.st_nlink == 0:
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512


def _refuse(place: str) -> None:
    """Raises Hidden where it still has memory: what a process that is just ending had is shown to root alone."""
    try:
        ending = Path(f"{place}/statm").read_text().startswith("0 ")
    except OSError:
        return
    if not ending:
        raise Hidden("it closed itself to the one who measures what it holds")


def _mapped_files(place: str, seen: dict[tuple[int, int], int]) -> None:
    """Mappings whose descriptor was closed. Their files' sizes are told to root alone; for others what is mapped must
    do, and `may_hide` is asked where more is missing than that."""
    for inode, span, is_shared in _deleted_mappings(place):
        try:
            size = os.stat(f"{place}/map_files/{span}").st_blocks * 512
        except OSError:
            first, _, last = span.partition("-")
            size = int(last, 16) - int(first, 16) if is_shared else 0
        seen[inode] = max(size, seen.get(inode, 0))


def _deleted_mappings(place: str) -> Iterator[tuple[tuple[int, int], str, bool]]:
    """Device and number of the file, the addresses, and whether it is shared. Raises Hidden."""
    try:
        lines = Path(f"{place}/maps").read_text(errors="replace").splitlines()
    except PermissionError:
        _refuse(place)
        return
    except OSError:
        return
    for line in lines:
        if line.endswith(_DELETED):
            words = line.split(None, 5)
            major, _, minor = words[3].partition(":")
            first, last = (int(word, 16) for word in words[0].split("-"))
            yield (os.makedev(int(major, 16), int(minor, 16)), int(words[4])), f"{first:x}-{last:x}", "s" in words[1]


def may_hide(init_pid: int, apart: Collection[int] = ()) -> bool:
    """Whether processes below hold files whose size cannot be told from outside: sent through a socket and not taken
    out of it, or mapped, without a name or a descriptor. `apart`: devices whose files are no disk. Raises Hidden."""
    for pid in descendants(init_pid):
        place = _alive(pid)
        if place and (any(device not in apart for (device, _), _, _ in _deleted_mappings(place)) or _sent_away(place)):
            return True
    return False


def _sent_away(place: str) -> bool:
    try:
        names = os.listdir(f"{place}/fdinfo")
    except OSError:
        return False
    for name in names:
        with contextlib.suppress(OSError):
            for line in Path(f"{place}/fdinfo/{name}").read_text().splitlines():
                if line.startswith("scm_fds:") and line.split()[1] != "0":
                    return True
    return False
