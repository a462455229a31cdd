"""Room on the disk that is lent: what was used longest ago goes, and where that is not enough it is said in words."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from fallow.agent.caches import Caches
from fallow.core.quantities import size_words
from fallow.model.errors import PoolRefused

DISK_RESERVE_BYTES = 64 << 20
"""Left free on the disk, whatever is lent."""


class Disk:
    """The disk of `folder`, where `caches` lie. `reserve_bytes` of it stay free."""

    def __init__(self, folder: Path, caches: Caches, reserve_bytes: int = DISK_RESERVE_BYTES) -> None:
        self._folder = folder
        self._caches = caches
        self._reserve_bytes = reserve_bytes
        self._making_room = asyncio.Lock()

    async def make_room(self, size: int, limit: int) -> None:
        """Free so many bytes, within `limit` for everything (0: none). Raises PoolRefused in words where that cannot
        be had."""
        async with self._making_room:
            if limit and size > limit:
                raise PoolRefused(
                    f"{size_words(size)} do not fit into the {size_words(limit)} of disk that this machine lends.",
                    "store_full",
                )
            words = await asyncio.to_thread(self._room_for, size, limit)
            if words:
                raise PoolRefused(words, "store_full")

    def _room_for(self, size: int, limit: int) -> str | None:
        """Blocks. Words where there is no room."""
        free = _free_bytes(self._folder)
        now = time.time()
        usage = self._caches.look(now)
        taken = usage.kept_bytes + usage.scratch_bytes
        allowed = limit - size if limit else taken
        shortage = size + self._reserve_bytes - free if free is not None else 0
        if shortage > 0:
            allowed = min(allowed, taken - shortage)
        if taken <= allowed:
            return None
        usage = self._caches.prune(max(1, allowed), now)
        left = usage.kept_bytes + usage.scratch_bytes
        free = _free_bytes(self._folder)
        if free is not None and free < size + self._reserve_bytes:
            return (
                f"the disk under {self._folder} is full: {size_words(free)} are free, {size_words(size)} and "
                f"a reserve of {size_words(self._reserve_bytes)} are needed, and nothing more can be removed."
            )
        if limit and left + size > limit:
            return (
                f"the {size_words(limit)} of disk that this machine lends are full: {size_words(left)} are in use, and "
                f"{size_words(size)} more are needed."
            )
        return None


def _free_bytes(folder: Path) -> int | None:
    try:
        about = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return about.f_bavail * about.f_frsize
