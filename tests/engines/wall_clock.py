"""Sets the wall clock of running processes wrong, whatever they are written in.

Programs read the clock in the vDSO, a page of code that the kernel maps into every process. Its functions are led to
ours here, which ask the kernel and add an offset: so static programs (Go's) are reached as well, which no preloaded
library reaches, and clocks that only go on (CLOCK_MONOTONIC) are left as they are. Children that a process forks
inherit the clock; programs that are started anew have the machine's.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

_ROOM = 128
_MARK = b"fallowck"
"""At the end of the vDSO's last page, which is empty: the mark, the offset in seconds, then our code."""

# Registers are those of the C calling convention: rdi, rsi are what was passed; rcx and r11 are the kernel's to spoil.
_CLOCK_GETTIME = (
    b"\xb8\xe4\x00\x00\x00\x0f\x05"  # mov eax, SYS_clock_gettime; syscall
    b"\x85\xff\x74\x05\x83\xff\x05\x75\x0a"  # neither CLOCK_REALTIME nor its coarse one: return
    b"\x48\x8b\x0d%b\x48\x01\x0e"  # mov rcx, [offset]; add [rsi], rcx
    b"\xc3"
)
_GETTIMEOFDAY = (
    b"\xb8\x60\x00\x00\x00\x0f\x05"
    b"\x48\x85\xff\x74\x0a"  # no place for it: return
    b"\x48\x8b\x0d%b\x48\x01\x0f"
    b"\xc3"
)
_TIME = (
    b"\xb8\xc9\x00\x00\x00\x0f\x05"
    b"\x48\x03\x05%b"  # add rax, [offset]
    b"\x48\x85\xff\x74\x03\x48\x89\x07"  # and where there is a place for it, there too
    b"\xc3"
)
_FUNCTIONS = {
    "__vdso_clock_gettime": (_CLOCK_GETTIME, 19),
    "__vdso_gettimeofday": (_GETTIMEOFDAY, 15),
    "__vdso_time": (_TIME, 10),
}
"""With where each has the distance to the offset."""


def why_not() -> str:
    """Why it cannot be done on this machine; '' where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "it is known for Linux on x86-64 alone"
    if os.geteuid() != 0:
        return "it needs root"
    return ""


def set_clock(pids: Iterable[int], offset_s: int) -> int:
    """From now on these processes' wall clock is wrong by so much. Returns how many of them are reached; one that has
    ended is not. Raises OSError where it cannot be done."""
    return sum(_set(pid, offset_s) for pid in pids)


def _set(pid: int, offset_s: int) -> bool:
    try:
        place = _vdso(pid)
        if place is None:
            return False
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            start, stop = place
            memory.seek(start)
            image = memory.read(stop - start)
            mark = stop - _ROOM
            room = image[-_ROOM:]
            if not room.startswith(_MARK):
                if any(room):
                    raise OSError(f"the vDSO of process {pid} has no room")
                _lead_here(pid, memory, start, image)
            memory.seek(mark + len(_MARK))
            memory.write(struct.pack("<q", offset_s))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def _lead_here(pid: int, memory: IO[bytes], start: int, image: bytes) -> None:
    """While it is stopped: what a thread runs is not to be changed under it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        base = len(image) - _ROOM
        at = base + len(_MARK) + 8
        writes = [(base, _MARK + bytes(8))]
        jumps = []
        symbols = dict(_symbols(image))
        for name, (code, distance_at) in _FUNCTIONS.items():
            if name in symbols:
                offset = struct.pack("<i", base + len(_MARK) - (at + distance_at + 4))
                made = code.replace(b"%b", offset)
                writes.append((at, made))
                entry = symbols[name]
                jumps.append((entry, b"\xe9" + struct.pack("<i", at - (entry + 5)) + image[entry + 5 : entry + 8]))
                at += (len(made) + 7) // 8 * 8
        assert at <= len(image), "the code is longer than the room for it"
        for where, what in (*writes, *jumps):
            memory.seek(start + where)
            memory.write(what)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _vdso(pid: int) -> tuple[int, int] | None:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            first, last = line.split()[0].split("-")
            return int(first, 16), int(last, 16)
    return None


def _symbols(image: bytes) -> Iterable[tuple[str, int]]:
    """Of an ELF file's dynamic table."""
    sections_at = struct.unpack_from("<Q", image, 40)[0]
    size, count = struct.unpack_from("<HH", image, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, sections_at + number * size) for number in range(count)]
    for _, kind, _, _, at, length, link, *_ in sections:
        if kind != 11:  # SHT_DYNSYM
            continue
        names = sections[link][4]
        for entry in range(at, at + length, 24):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", image, entry)
            yield image[names + name : image.index(b"\0", names + name)].decode(), value
