"""A small interpreter of classic BPF, as far as the filter uses it."""

from __future__ import annotations

import struct


def run(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What a filter answers to a system call."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    steps = list(struct.iter_unpack("<HBBI", program))
    accumulator, place = 0, 0
    while True:
        code, when_true, when_false, value = steps[place]
        place += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            place += when_true if holds else when_false
