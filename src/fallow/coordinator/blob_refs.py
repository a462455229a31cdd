"""Which blobs the jobs of this coordinator still need, and which were given up and may be deleted a while later."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

BATCH = 2000


class BlobRefs:
    """Counts references by digest. Blobs that were never counted (fallow.put) are not touched here. A blob may be
    deleted `remove_after_s` after its last reference went, unless it was written or referred to again."""

    def __init__(self, remove_after_s: float) -> None:
        self._remove_after_s = remove_after_s
        self._counts: Counter[str] = Counter()
        self._doomed: deque[tuple[float, str]] = deque()

    def add(self, digest: str) -> None:
        self._counts[digest] += 1

    def drop(self, digest: str, now: float) -> None:
        self._counts[digest] -= 1
        if self._counts[digest] <= 0:
            del self._counts[digest]
            self._doomed.append((now + self._remove_after_s, digest))

    def release(self, digest: str) -> None:
        """One reference goes to another coordinator: the blob is not ours to delete."""
        self._counts[digest] -= 1
        if self._counts[digest] <= 0:
            del self._counts[digest]

    def needed(self, digest: str) -> bool:
        return digest in self._counts

    def is_due(self, now: float) -> bool:
        """Whether `take_due` may name some."""
        return bool(self._doomed) and self._doomed[0][0] <= now

    def take_due(self, now: float) -> list[str]:
        """Some that are due and still not referred to, to be deleted now."""
        due: list[str] = []
        while self._doomed and self._doomed[0][0] <= now and len(due) < BATCH:
            digest = self._doomed.popleft()[1]
            if digest not in self._counts:
                due.append(digest)
        return due

    def put_back(self, digests: Sequence[str], now: float) -> None:
        """They could not be deleted: try again later."""
        self._doomed.extend((now + self._remove_after_s, digest) for digest in digests)
