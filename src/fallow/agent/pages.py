"""Input pages that the node holds, by job and first task, so that a page is sent to it once."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict

from fallow.model.ids import JobId
from fallow.model.parts import InputPage

CACHE_BYTES = 64 * 1024 * 1024
NAMED_LIMIT = 8
"""Pages that a Pull names at most."""
OVERHEAD_BYTES = 300


class PageCache:
    """Bounded in bytes; the pages used longest ago go first."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._pages: OrderedDict[tuple[JobId, int], InputPage] = OrderedDict()
        self._starts: dict[JobId, list[int]] = {}

    @property
    def size_bytes(self) -> int:
        return self._size

    def add(self, job_id: JobId, pages: tuple[InputPage, ...]) -> None:
        """Keep these pages."""
        for page in pages:
            key = (job_id, page.start)
            if key in self._pages:
                self._pages.move_to_end(key)
                continue
            self._pages[key] = page
            insort(self._starts.setdefault(job_id, []), page.start)
            self._size += _cost(page)
        while self._size > self._limit and len(self._pages) > 1:
            self._remove(next(iter(self._pages)))

    def find(self, job_id: JobId, start: int, stop: int) -> tuple[InputPage, ...] | None:
        """The pages that cover [start, stop), in order; None where one is missing."""
        starts = self._starts.get(job_id)
        if not starts:
            return None
        at = bisect_right(starts, start) - 1
        if at < 0:
            return None
        found: list[InputPage] = []
        reached = start
        while reached < stop:
            if at >= len(starts):
                return None
            key = (job_id, starts[at])
            page = self._pages[key]
            if page.start > reached or page.stop <= reached:
                return None
            self._pages.move_to_end(key)
            found.append(page)
            reached = page.stop
            at += 1
        return tuple(found)

    def named(self, job_id: JobId) -> tuple[int, ...]:
        """Starts of pages to name in a Pull: the last of the job, where what is not leased yet lies."""
        return tuple(self._starts.get(job_id, ())[-NAMED_LIMIT:])

    def forget_job(self, job_id: JobId) -> None:
        for start in list(self._starts.get(job_id, ())):
            self._remove((job_id, start))

    def _remove(self, key: tuple[JobId, int]) -> None:
        page = self._pages.pop(key)
        self._size -= _cost(page)
        starts = self._starts[key[0]]
        del starts[bisect_right(starts, key[1]) - 1]
        if not starts:
            del self._starts[key[0]]


def cover(pages: tuple[InputPage, ...], start: int, stop: int) -> bool:
    """Say whether these pages alone hold all of [start, stop)."""
    reached = start
    for page in sorted(pages, key=lambda page: page.start):
        if page.start > reached:
            return False
        reached = max(reached, page.stop)
    return reached >= stop


def _cost(page: InputPage) -> int:
    return OVERHEAD_BYTES + len(page.page.data or b"")
