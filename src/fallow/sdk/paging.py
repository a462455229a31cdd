"""How inputs are cut into pages, and how far submission may run ahead: pure decisions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

PAGE_ITEMS_LIMIT = 8192
PAGE_BYTES_AIM = 256 * 1024
PAGE_GROWTH = 8
RANGE_PAGE_TASKS = 1 << 20
"""A page of a `range` is 48 bytes however long it is; this bounds what one page makes outstanding."""
DRAW_AIM_S = 0.02
"""An iterable that yields slowly gets short pages, so that its tasks do not wait for each other."""
WINDOW_TASKS = 4 << 20
"""Tasks submitted beyond those whose results are here."""
WINDOW_BYTES = 64 << 20
"""The same in bytes of inputs, until the pool names its own bound."""

CALLS_WINDOW_S = 0.05
"""Single calls sent ahead of their answers: so much work, and at least two for each slot."""
CALLS_WINDOW_LIMIT = 65_536


def next_count(count: int, took_s: float, page_bytes: int) -> int:
    """Items to draw for the next page, after one of `count` items that took `took_s` to draw and came to `page_bytes`.

    Grows eightfold, to at most PAGE_ITEMS_LIMIT items, about PAGE_BYTES_AIM bytes and DRAW_AIM_S of drawing."""
    wanted = min(count * PAGE_GROWTH, PAGE_ITEMS_LIMIT)
    if page_bytes > 0:
        wanted = min(wanted, max(1, PAGE_BYTES_AIM * count // page_bytes))
    if took_s * wanted > DRAW_AIM_S * count:
        wanted = min(wanted, max(1, int(count * DRAW_AIM_S / took_s)))
    return max(1, wanted)


def range_cuts(start: int, stop: int, page_tasks: int = RANGE_PAGE_TASKS) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) into pages of at most `page_tasks`."""
    for low in range(start, stop, page_tasks):
        yield low, min(low + page_tasks, stop)


class Window:
    """What is submitted and not yet answered, in tasks and bytes. A page larger than the whole window goes alone."""

    def __init__(self, tasks: int = WINDOW_TASKS, size: int = WINDOW_BYTES) -> None:
        self.tasks = tasks
        self.size = size
        self.sent = 0
        self.received = 0
        self._bytes = 0
        self._pages: deque[tuple[int, int]] = deque()

    def admits(self, count: int, size: int) -> bool:
        """Say whether a page of `count` tasks and `size` bytes may be submitted now."""
        if self.sent <= self.received:
            return True
        return self.sent - self.received + count <= self.tasks and self._bytes + size <= self.size

    def submitted(self, count: int, size: int) -> None:
        self.sent += count
        self._bytes += size
        self._pages.append((self.sent, size))

    def answered(self, count: int) -> None:
        """Results of `count` more tasks are here. By count, not by index: results may come out of order."""
        self.received += count
        while self._pages and self._pages[0][0] <= self.received:
            self._bytes -= self._pages.popleft()[1]


class RateWindow:
    """How many calls may be out at once: two for each slot, or CALLS_WINDOW_S of work at the measured rate."""

    def __init__(self, slots: int) -> None:
        self._least = 2 * max(1, slots)
        self.size = self._least
        self._since = 0.0
        self._count = 0

    def set_slots(self, slots: int) -> None:
        """The pool has so many slots now."""
        self._least = 2 * max(1, slots)
        self.size = max(self.size, self._least)

    def answered(self, count: int, now: float, idle: bool) -> None:
        """`count` calls were answered at `now` (seconds); `idle`: none is out any more."""
        self._count += count
        took = now - self._since
        if took < 0.005:
            return
        if took < 1.0:
            wanted = int(self._count / took * CALLS_WINDOW_S)
            # Grows fast and shrinks slowly: a pause of the caller says nothing about the pool.
            self.size = max(self._least, min(CALLS_WINDOW_LIMIT, max(wanted, self.size - self.size // 8)))
            self.size = min(self.size, max(self._least, 8 * self._count + self._least))
        self._since, self._count = now, 0
        if idle:
            self._since = now
