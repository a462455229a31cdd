"""Input pages of a job: which tasks each covers, with the bytes of the recent ones."""

from __future__ import annotations

from bisect import bisect_right

from fallow.model.job import Blob
from fallow.model.parts import InputPage


class InputIndex:
    """Consecutive pages. Inline bytes beyond `keep_bytes` are let go (the store has them); `is_let_go` says which. Of
    what was read again, the last `again_bytes` are kept."""

    def __init__(self, keep_bytes: int = 32 * 1024 * 1024, again_bytes: int = 8 * 1024 * 1024) -> None:
        self._starts: list[int] = []
        self._pages: list[InputPage] = []
        self._keep_bytes = keep_bytes
        self._kept = 0
        self._let_go = 0
        """Position up to which bytes were let go."""
        self._in_store: set[int] = set()
        self._again_bytes = again_bytes
        self._again: dict[int, int] = {}
        """Sizes of pages that were read again, by their start, oldest first."""
        self._again_kept = 0

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
            if old.page.data is not None and old.page.size and old.start not in self._again:
                self._kept -= len(old.page.data)
                self._forget_bytes(self._let_go)
            self._let_go += 1

    def put_back(self, start: int, blob: Blob) -> None:
        """The page's bytes were read from the store: they are kept for a while, since the next leases want the same."""
        if start not in self._in_store or blob.data is None:
            return
        at = bisect_right(self._starts, start) - 1
        page = self._pages[at]
        self._pages[at] = InputPage(page.start, page.stop, blob)
        self._in_store.discard(start)
        self._again[start] = len(blob.data)
        self._again_kept += len(blob.data)
        while self._again_kept > self._again_bytes and len(self._again) > 1:
            oldest = next(iter(self._again))
            self._again_kept -= self._again.pop(oldest)
            self._forget_bytes(bisect_right(self._starts, oldest) - 1)

    def _forget_bytes(self, at: int) -> None:
        page = self._pages[at]
        self._in_store.add(page.start)
        self._pages[at] = InputPage(page.start, page.stop, Blob(page.page.digest, page.page.size))

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
            page = self._pages[count]
            if page.start in self._again:
                self._again_kept -= self._again.pop(page.start)
            elif page.page.data is not None:
                self._kept -= len(page.page.data)
            self._in_store.discard(page.start)
            count += 1
        gone = self._pages[:count]
        del self._pages[:count]
        del self._starts[:count]
        self._let_go = max(0, self._let_go - count)
        return gone
