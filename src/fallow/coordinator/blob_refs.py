"""Which blobs of the local store the jobs of this coordinator still need, and deleting the rest a while later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DELETE_AFTER_S = 15.0
"""A blob whose last reference went is deleted this much later, unless it was written or referred to again."""
BATCH = 2000


class BlobRefs:
    """Counts references by digest. Blobs that were never counted (fallow.put) are not touched here."""

    def __init__(self, blob_dir: Path) -> None:
        self._dir = blob_dir
        self._counts: Counter[str] = Counter()
        self._doomed: deque[tuple[float, str]] = deque()

    def add(self, digest: str) -> None:
        self._counts[digest] += 1

    def drop(self, digest: str, now: float) -> None:
        self._counts[digest] -= 1
        if self._counts[digest] <= 0:
            del self._counts[digest]
            self._doomed.append((now + DELETE_AFTER_S, digest))

    def release(self, digest: str) -> None:
        """One reference goes to another coordinator: the blob is not ours to delete."""
        self._counts[digest] -= 1
        if self._counts[digest] <= 0:
            del self._counts[digest]

    def needed(self, digest: str) -> bool:
        return digest in self._counts

    async def sweep(self, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor, now: float) -> int:
        """Delete what is due and still unreferenced. Returns how many."""
        due: list[str] = []
        while self._doomed and self._doomed[0][0] <= now and len(due) < BATCH:
            digest = self._doomed.popleft()[1]
            if digest not in self._counts:
                due.append(digest)
        if not due:
            return 0
        return await loop.run_in_executor(pool, self._delete, due)

    def _delete(self, digests: list[str]) -> int:
        young = time.time() - DELETE_AFTER_S / 2
        count = 0
        for digest in digests:
            path = self._dir / digest[:2] / digest
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < young and digest not in self._counts:
                    path.unlink()
                    count += 1
        return count
