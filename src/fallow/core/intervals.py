"""Sets of task numbers as sorted, disjoint, non-adjacent half-open intervals.

Every operation is O(log n + touched intervals) to find its place, and O(n) to insert into the list; n is the number
of holes in a job's progress, not of its tasks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from fallow.model.ids import Interval


class IntervalSet:
    """A mutable set of integers. Merging is commutative and idempotent."""

    __slots__ = ("_starts", "_stops", "count")

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.count = 0
        """How many integers (not intervals) are in the set: what len() says, without a call."""
        for start, stop in intervals:
            self.add(start, stop)

    @classmethod
    def of(cls, start: int, stop: int) -> IntervalSet:
        """[start, stop), which is not empty."""
        made = cls.__new__(cls)
        made._starts = [start]
        made._stops = [stop]
        made.count = stop - start
        return made

    def __len__(self) -> int:
        """How many integers (not intervals) are in the set."""
        return self.count

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[Interval]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)!r})"

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._starts, index) - 1
        return at >= 0 and index < self._stops[at]

    @property
    def interval_count(self) -> int:
        return len(self._starts)

    @property
    def first(self) -> Interval | None:
        return (self._starts[0], self._stops[0]) if self._starts else None

    def intervals(self) -> tuple[Interval, ...]:
        return tuple(zip(self._starts, self._stops, strict=True))

    def add(self, start: int, stop: int) -> list[Interval]:
        """Add [start, stop); returns the parts that were not in the set before, in order."""
        if start >= stop:
            return []
        starts, stops = self._starts, self._stops
        low = bisect_left(stops, start)
        if low == len(stops):
            starts.append(start)
            stops.append(stop)
            self.count += stop - start
            return [(start, stop)]
        if starts[low] > stop:
            starts.insert(low, start)
            stops.insert(low, stop)
            self.count += stop - start
            return [(start, stop)]
        high = low + 1  # mostly it is; to search for it would be a second walk through memory
        if high < len(starts) and starts[high] <= stop:
            high = bisect_right(starts, stop, high)
        fresh: list[Interval] = []
        at = start
        for i in range(low, high):
            begun = starts[i]
            if begun > at:
                fresh.append((at, begun))
                self.count += begun - at
            if stops[i] > at:
                at = stops[i]
        if at < stop:
            fresh.append((at, stop))
            self.count += stop - at
            at = stop
        if fresh:
            if starts[low] > start:
                starts[low] = start
            stops[low] = at
            if high > low + 1:
                del starts[low + 1 : high]
                del stops[low + 1 : high]
        return fresh

    def remove(self, start: int, stop: int) -> list[Interval]:
        """Remove [start, stop); returns the parts that were in the set, in order."""
        if start >= stop:
            return []
        low = bisect_right(self._stops, start)
        if low == len(self._stops):
            return []
        first, last = self._starts[low], self._stops[low]
        if first <= start and stop <= last:
            self._remove_within(low, first, start, stop, last)
            return [(start, stop)]
        high = bisect_left(self._starts, stop, low)
        if low >= high:
            return []
        gone = [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(low, high)]
        keep: list[Interval] = []
        if self._starts[low] < start:
            keep.append((self._starts[low], start))
        if self._stops[high - 1] > stop:
            keep.append((stop, self._stops[high - 1]))
        self._starts[low:high] = [a for a, _ in keep]
        self._stops[low:high] = [b for _, b in keep]
        self.count -= sum(b - a for a, b in gone)
        return gone

    def _remove_within(self, at: int, first: int, start: int, stop: int, last: int) -> None:
        """What is removed lies in one interval, [first, last)."""
        self.count -= stop - start
        if first == start:
            if stop == last:
                del self._starts[at]
                del self._stops[at]
            else:
                self._starts[at] = stop
        else:
            self._stops[at] = start
            if stop != last:
                self._starts.insert(at + 1, stop)
                self._stops.insert(at + 1, last)

    def overlap(self, start: int, stop: int) -> list[Interval]:
        """The parts of [start, stop) that are in the set."""
        low = bisect_right(self._stops, start)
        high = bisect_left(self._starts, stop, low)
        return [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(low, high)]

    def gaps(self, start: int, stop: int) -> list[Interval]:
        """The parts of [start, stop) that are not in the set."""
        found: list[Interval] = []
        at = start
        for a, b in self.overlap(start, stop):
            if a > at:
                found.append((at, a))
            at = b
        if at < stop:
            found.append((at, stop))
        return found

    def covers(self, start: int, stop: int) -> bool:
        """Say whether all of [start, stop) is in the set (an empty range is)."""
        if start >= stop:
            return True
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._stops[at] >= stop

    def intersects(self, start: int, stop: int) -> bool:
        low = bisect_right(self._stops, start)
        return low < len(self._starts) and self._starts[low] < stop and start < stop

    def pop_first(self, limit: int) -> Interval | None:
        """Remove and return at most `limit` integers from the front of the first interval."""
        if not self._starts or limit <= 0:
            return None
        start = self._starts[0]
        stop = min(self._stops[0], start + limit)
        self.remove(start, stop)
        return start, stop
