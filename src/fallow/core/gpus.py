"""Whose GPUs are whose on one node: whole devices, or hundredths of one. Planner and agent keep the same book.

A device is either one tenant's, or divided among tenants that asked for a part of it; together they never have more
than all of it. Where devices may not be divided (strangers' jobs), whoever asks for a part gets a device alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache

from fallow.model.job import GpuSpec
from fallow.model.node import Device

UNITS = 100
"""Parts of a device: 0.25 of it are 25, and 1/3 are 34, so that never more tenants than its share allows fit."""


def fits(device: Device, need: GpuSpec) -> bool:
    """Say whether the device works and is of a kind that the job accepts."""
    return (
        not device.fault
        and device.memory_bytes >= need.min_memory_bytes
        and (not need.models or any(is_model(device.model, model) for model in need.models))
    )


@lru_cache(maxsize=4096)
def is_model(name: str, wanted: str) -> bool:
    """Whether a driver's name of a device ('NVIDIA A100-SXM4-40GB') is of the model that a user wrote ('A100'): the
    same letters and digits from the start of a word to the end of one. 'RTX4090' is 'RTX 4090'; 'A10' is not 'A100'."""
    have, want = _words(name), "".join(_words(wanted))
    starts = range(len(have))
    return bool(want) and any("".join(have[at:stop]) == want for at in starts for stop in range(at + 1, len(have) + 1))


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def units_of(need: GpuSpec) -> int:
    """Hundredths of each device that the need takes; rounded up."""
    return min(UNITS, max(1, math.ceil(need.share * UNITS - 1e-9)))


def room(devices: Sequence[Device], need: GpuSpec, shares: bool) -> int:
    """How many such needs these devices could serve at once if nobody else had any. 0: they could never."""
    if need.count < 1:
        return 0
    fitting = sum(1 for device in devices if fits(device, need))
    units = units_of(need) if shares else UNITS
    return (fitting // need.count) * (UNITS // units)


class GpuBook:
    """The devices of a node by number (in the order of its spec), and who has how much of them."""

    __slots__ = ("_closed", "_devices", "_left", "_shares", "_taken")

    def __init__(self, devices: Sequence[Device], shares: bool) -> None:
        self._devices = tuple(devices)
        self._shares = shares
        self._left = [UNITS] * len(self._devices)
        self._taken: dict[Hashable, tuple[tuple[int, ...], int]] = {}
        self._closed: frozenset[int] = frozenset()

    def copy(self) -> GpuBook:
        """Another node's, whose devices are the same and are whose these are."""
        other = GpuBook(self._devices, self._shares)
        other._left = self._left.copy()
        other._taken = self._taken.copy()
        other._closed = self._closed
        return other

    @property
    def whole_count(self) -> int:
        """Devices that nobody has any of."""
        return self._left.count(UNITS)

    def add(self, devices: Sequence[Device]) -> None:
        """Further ones, numbered on."""
        self._devices += tuple(devices)
        self._left += [UNITS] * len(devices)

    def close(self, number: int) -> None:
        """Give the device to nobody from now on; who has it keeps it."""
        self._closed |= {number}

    def open(self, number: int) -> None:
        self._closed -= {number}

    def held(self, owner: Hashable) -> tuple[int, ...]:
        """Numbers of the devices that the owner has (some of)."""
        return self._taken[owner][0] if owner in self._taken else ()

    def owners(self, number: int) -> list[Hashable]:
        return [owner for owner, (numbers, _) in self._taken.items() if number in numbers]

    def take(self, owner: Hashable, need: GpuSpec) -> tuple[int, ...] | None:
        """Numbers of as many devices as are needed: the smallest that do, and of shared ones those with the least
        left. None where there are too few. Who has some already is given the same again."""
        if owner in self._taken:
            return self._taken[owner][0]
        units = self._units(need)
        numbers = self._choose(self._left, need, units)
        if numbers is None:
            return None
        for number in numbers:
            self._left[number] -= units
        self._taken[owner] = (numbers, units)
        return numbers

    def release(self, owner: Hashable) -> tuple[int, ...]:
        """Numbers of the devices that the owner had."""
        numbers, units = self._taken.pop(owner, ((), 0))
        for number in numbers:
            self._left[number] += units
        return numbers

    def room(self, need: GpuSpec, most: int = 1, without: Iterable[Hashable] = ()) -> int:
        """How many such needs could be served now, at most `most`, if the owners in `without` gave up theirs."""
        left = list(self._left)
        for owner in without:
            numbers, units = self._taken.get(owner, ((), 0))
            for number in numbers:
                left[number] += units
        units = self._units(need)
        if need.count == 1 or (units == UNITS and need.count):
            able = self._able(left, need, units)
            return min(most, len(able) // need.count if units == UNITS else sum(left[at] // units for at in able))
        found = 0
        while found < most and (chosen := self._choose(left, need, units)) is not None:
            for number in chosen:
                left[number] -= units
            found += 1
        return found

    def _units(self, need: GpuSpec) -> int:
        return units_of(need) if self._shares and need.share < 1 else UNITS

    def _able(self, left: list[int], need: GpuSpec, units: int) -> list[int]:
        return [
            number
            for number, units_left in enumerate(left)
            if units_left >= units and number not in self._closed and fits(self._devices[number], need)
        ]

    def _choose(self, left: list[int], need: GpuSpec, units: int) -> tuple[int, ...] | None:
        able = self._able(left, need, units)
        if len(able) < need.count:
            return None
        if need.count == 1 == len(able):
            return (able[0],)
        able.sort(key=lambda number: (left[number], self._devices[number].memory_bytes, number))
        return tuple(sorted(able[: need.count]))
