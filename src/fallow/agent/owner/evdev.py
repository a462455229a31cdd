"""/dev/input: keyboards, mice and game pads themselves, where the agent's user may read them (root, group 'input').

Only that something came is of interest, and when: what was typed is thrown away unread.
"""

from __future__ import annotations

import os
import re
import struct
import time
from pathlib import Path

from fallow.agent.owner.sensor import Absent, Draft, Failed, InputSensor, clock_s
from fallow.core.owner_readings import Input

DEVICES = Path("/dev/input")
SYSFS = Path("/sys/class/input")
EV_KEY, EV_REL, EV_ABS = 1, 2, 3
KEY_Q, KEY_P, BTN_FIRST, BTN_LAST = 16, 25, 0x110, 0x14F
EVENT = struct.Struct("llHHi")
"""As the kernel writes one, with the time of day first."""
READ_BYTES = EVENT.size * 256
SCAN_EVERY_S = 10.0
MOST_WAITED_S = 120.0
"""Looks are not as rare as that; and the time of day may have been set meanwhile."""
ARM_AFTER_S = 5.0
"""A mouse that moves tells of it a thousand times a second: who has just been seen is not listened to."""


def bits(text: str) -> set[int]:
    """The numbers that a capability file of sysfs names: words of 64 bits in hexadecimal, the highest first."""
    found: set[int] = set()
    for place, word in enumerate(reversed(text.split())):
        value = int(word, 16)
        found |= {place * 64 + bit for bit in range(64) if value >> bit & 1}
    return found


def is_of_a_person(events: set[int], keys: set[int]) -> bool:
    """Whether such a device is something that a person types on, points or plays with; a power button is not."""
    types = set(range(KEY_Q, KEY_P + 1)) <= keys
    points = bool({EV_REL, EV_ABS} & events) and any(BTN_FIRST <= key <= BTN_LAST for key in keys)
    return EV_KEY in events and (types or points)


def person_devices(devices: Path = DEVICES, sysfs: Path = SYSFS) -> list[Path]:
    """Device files of what people type on and point with. Where sysfs does not describe one, it counts."""
    found = []
    try:
        names = sorted(os.listdir(devices))
    except OSError:
        return []
    for name in names:
        if re.fullmatch(r"event\d+", name):
            folder = sysfs / name / "device" / "capabilities"
            try:
                events, keys = bits((folder / "ev").read_text()), bits((folder / "key").read_text())
            except (OSError, ValueError):
                found.append(devices / name)
                continue
            if is_of_a_person(events, keys):
                found.append(devices / name)
    return found


class Evdev(InputSensor):
    name = "keyboard or mouse (/dev/input)"

    def __init__(self, devices: Path = DEVICES, sysfs: Path = SYSFS) -> None:
        self._devices, self._sysfs = devices, sysfs
        self._open: dict[Path, int] = {}

    def open(self) -> None:
        self._input_s = clock_s()
        """As far as is known: the time before cannot be read."""
        self._proves = self._is_armed = False
        self._scan()
        if not self._open:
            self.close()
            raise Absent

    def _scan(self) -> None:
        self._scanned_s = clock_s()
        wanted = person_devices(self._devices, self._sysfs)
        for path in [path for path in self._open if path not in wanted]:
            os.close(self._open.pop(path))
        for path in wanted:
            if path not in self._open:
                try:
                    self._open[path] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError:
                    continue
        self._proves = bool(wanted) and len(self._open) == len(wanted)

    def files(self) -> list[int]:
        return list(self._open.values()) if self._is_armed else []

    def news(self) -> bool:
        ago_s: list[float] = []
        for path, file in list(self._open.items()):
            try:
                while events := os.read(file, READ_BYTES):
                    ago_s.append(_since(events))
            except BlockingIOError:
                continue
            except OSError:
                # Unplugged: somebody's hand was there.
                os.close(self._open.pop(path))
                ago_s.append(0.0)
        if ago_s:
            self._input_s = max(self._input_s, clock_s() - min(ago_s))
        return bool(ago_s)

    def read(self, draft: Draft) -> None:
        self.news()
        if clock_s() - self._scanned_s >= SCAN_EVERY_S:
            self._scan()
        if not self._open:
            raise Failed("the input devices cannot be read any more")
        idle_s = clock_s() - self._input_s
        self._is_armed = idle_s >= ARM_AFTER_S
        draft.inputs[self.name] = Input("keyboard or mouse", idle_s, self._proves, notifies=self._is_armed)

    def close(self) -> None:
        for file in self._open.values():
            os.close(file)
        self._open.clear()


def _since(events: bytes) -> float:
    """Seconds since the last of these events, some of which may have waited to be read; what cannot be is 0."""
    if len(events) < EVENT.size:
        return 0.0
    seconds, micros, *_ = EVENT.unpack_from(events, len(events) // EVENT.size * EVENT.size - EVENT.size)
    ago_s = time.time() - seconds - micros / 1e6
    return float(ago_s) if 0.0 <= ago_s <= MOST_WAITED_S else 0.0
