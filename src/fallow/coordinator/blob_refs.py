"""Which blobs the jobs of this coordinator still need, and which were given up and may be deleted a while later."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

BATCH = 2000


class BlobRefs:
    """Counts references by digest. Blobs that were never counted (fallow.put) are not touched here. Reading and
    `needed` are for any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._garbage: deque[tuple[float, str]] = deque()
        """What nothing refers to any more, and since when."""
        self._fresh: list[str] = []
        self.unstored: Counter[str] = Counter()
        """Those among the counted that the store does not know of: inputs of single calls."""

    def __len__(self) -> int:
        """How much garbage there is."""
        return len(self._garbage)

    def add(self, digest: str, *, unstored: bool = False) -> None:
        self._counts[digest] += 1
        if unstored:
            self.unstored[digest] += 1

    def drop(self, digest: str, now: float, *, unstored: bool = False) -> None:
        if self._less(digest, unstored):
            self._garbage.append((now, digest))
            self._fresh.append(digest)

    def release(self, digest: str, *, unstored: bool = False) -> None:
        """One reference goes to another coordinator: the blob is not ours to delete."""
        self._less(digest, unstored)

    def unwanted(self, digest: str, now: float) -> None:
        """Somebody has put a blob, and nothing is going to refer to it (unless it is referred to already)."""
        self.add(digest)
        self.drop(digest, now)

    def needed(self, digest: str) -> bool:
        return digest in self._counts

    def take_due(self, now: float, kept_s: float) -> list[str]:
        """Some that were given up `kept_s` ago and are still not referred to, oldest first, to be deleted now."""
        due: list[str] = []
        while self._garbage and self._garbage[0][0] <= now - kept_s and len(due) < BATCH:
            digest = self._garbage.popleft()[1]
            if digest not in self._counts:
                due.append(digest)
        return due

    def put_back(self, digests: Sequence[str], now: float) -> None:
        """They could not be deleted: try again later."""
        self._garbage.extend((now, digest) for digest in digests)

    def take_fresh(self) -> list[str]:
        """What was given up since the last time."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def garbage(self) -> list[str]:
        return [digest for _, digest in self._garbage]

    def _less(self, digest: str, unstored: bool) -> bool:
        """One reference less. Returns whether it was the last one."""
        if unstored:
            self.unstored[digest] -= 1
            if self.unstored[digest] <= 0:
                del self.unstored[digest]
        self._counts[digest] -= 1
        if self._counts[digest] > 0:
            return False
        del self._counts[digest]
        return True
