"""What is left of one range of tasks: an interval set that is two numbers for as long as it is one interval.

Every lease has one, most leases are of few tasks, and a large pool has tens of thousands of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fallow.core.intervals import IntervalSet
from fallow.model.ids import Interval


class Remainder:
    """A set of integers that only shrinks."""

    __slots__ = ("_pieces", "_start", "_stop")

    def __init__(self, start: int, stop: int) -> None:
        self._start = start
        self._stop = stop
        self._pieces: IntervalSet | None = None
        """From the first hole in the middle on; the numbers above mean nothing then."""

    @classmethod
    def of(cls, pieces: Sequence[Interval]) -> Remainder:
        """Of these intervals, which are disjoint and in order; at least one."""
        made = cls(pieces[0][0], pieces[-1][1])
        if len(pieces) > 1:
            made._pieces = IntervalSet(pieces)
        return made

    def __len__(self) -> int:
        """How many integers (not intervals) are left."""
        return self._stop - self._start if self._pieces is None else len(self._pieces)

    def __bool__(self) -> bool:
        return self._start < self._stop if self._pieces is None else bool(self._pieces)

    def __contains__(self, index: int) -> bool:
        return self._start <= index < self._stop if self._pieces is None else index in self._pieces

    def __repr__(self) -> str:
        return f"Remainder({list(self.intervals())!r})"

    def intervals(self) -> tuple[Interval, ...]:
        if self._pieces is not None:
            return self._pieces.intervals()
        return ((self._start, self._stop),) if self._start < self._stop else ()

    def covers(self, start: int, stop: int) -> bool:
        """Say whether all of [start, stop) is left (an empty range is)."""
        if self._pieces is not None:
            return self._pieces.covers(start, stop)
        return start >= stop or (self._start <= start and stop <= self._stop)

    def overlap(self, start: int, stop: int) -> list[Interval]:
        """The parts of [start, stop) that are left."""
        if self._pieces is not None:
            return self._pieces.overlap(start, stop)
        low, high = max(start, self._start), min(stop, self._stop)
        return [(low, high)] if low < high else []

    def take(self, start: int, stop: int) -> bool:
        """Remove [start, stop), which is not empty, if all of it is left. False: it is not, and nothing was removed."""
        if self._pieces is None:
            if not self._start <= start or stop > self._stop:
                return False
            if self._start == start:
                self._start = stop
                return True
        elif not self._pieces.covers(start, stop):
            return False
        self.remove(start, stop)
        return True

    def remove(self, start: int, stop: int) -> list[Interval]:
        """Remove [start, stop); returns the parts that were left until now, in order."""
        if self._pieces is not None:
            return self._pieces.remove(start, stop)
        first, last = self._start, self._stop
        low = start if start > first else first
        high = stop if stop < last else last
        if low >= high:
            return []
        if low == first:
            self._start = high
        elif high == last:
            self._stop = low
        else:
            self._pieces = IntervalSet(((first, low), (high, last)))
        return [(low, high)]
