"""Input pages of a job: which tasks each covers, with the bytes of the recent ones."""

from __future__ import annotations

from bisect import bisect_right

from fallow.model.job import Blob
from fallow.model.parts import InputPage


class InputIndex:
    """Consecutive pages. Inline bytes beyond `keep_bytes` are let go (the store has them); `missing` says where."""

    def __init__(self, keep_bytes: int = 32 * 1024 * 1024) -> None:
        self._starts: list[int] = []
        self._pages: list[InputPage] = []
        self._keep_bytes = keep_bytes
        self._kept = 0
        self._let_go = 0
        """Position up to which bytes were let go."""
        self._in_store: set[int] = set()

    def __len__(self) -> int:
        return len(self._pages)

    def pages(self) -> list[InputPage]:
        return list(self._pages)

    def is_let_go(self, start: int) -> bool:
        """Say whether the page's bytes are inline ones that only the store has now."""
        return start in self._in_store

    def add(self, page: InputPage, *, durable: bool = True, in_store: bool = False) -> None:
        """Append a page; the newest bytes are kept, the oldest let go first. in_store: an inline page without its
        bytes, as the store lists it."""
        if in_store:
            self._in_store.add(page.start)
        self._starts.append(page.start)
        self._pages.append(page)
        if page.page.data is not None:
            self._kept += len(page.page.data)
        while durable and self._kept > self._keep_bytes and self._let_go < len(self._pages) - 1:
            old = self._pages[self._let_go]
            if old.page.data is not None and old.page.size:
                self._kept -= len(old.page.data)
                self._in_store.add(old.start)
                self._pages[self._let_go] = InputPage(old.start, old.stop, Blob(old.page.digest, old.page.size))
            self._let_go += 1

    def covering(self, start: int, stop: int) -> list[InputPage]:
        """The pages that hold [start, stop)."""
        at = max(0, bisect_right(self._starts, start) - 1)
        found: list[InputPage] = []
        while at < len(self._pages) and self._pages[at].start < stop:
            if self._pages[at].stop > start:
                found.append(self._pages[at])
            at += 1
        return found

    def drop_below(self, index: int) -> list[InputPage]:
        """Forget the pages that end at or before `index`."""
        count = 0
        while count < len(self._pages) and self._pages[count].stop <= index:
            data = self._pages[count].page.data
            self._kept -= len(data) if data is not None else 0
            self._in_store.discard(self._pages[count].start)
            count += 1
        gone = self._pages[:count]
        del self._pages[:count]
        del self._starts[:count]
        self._let_go = max(0, self._let_go - count)
        return gone
