"""Room on the disk that is lent: what was used longest ago goes, and where that is not enough it is said in words."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from fallow.agent.caches import Caches, Usage
from fallow.agent.limits.writers import Writers
from fallow.core.quantities import size_words
from fallow.model.errors import PoolRefused

DISK_RESERVE_BYTES = 64 << 20
"""Left free on the disk, whatever is lent."""
MARGIN_BYTES = 256 << 20
"""Of what a build may hold it is given so much less, and no more than a quarter: what it writes until it is found out
comes on top."""
LOOK_EVERY_S = 60.0
LOOK_AGAIN_S = 10.0
"""The same where work has begun or ended since."""


class Disk:
    """The disk of `folder`, where `caches` lie. `reserve_bytes` of it stay free."""

    def __init__(
        self,
        folder: Path,
        caches: Caches,
        reserve_bytes: int = DISK_RESERVE_BYTES,
        writers: Writers | None = None,
    ) -> None:
        self._folder = folder
        self._caches = caches
        self._reserve_bytes = reserve_bytes
        self._writers = Writers() if writers is None else writers
        self._making_room = asyncio.Lock()
        self._taken = self._held_then = 0
        """As of the last look: in all, and of that by who writes."""
        self._looked_s = float("-inf")
        self._changes_then = -1
        self._holding: asyncio.Task[None] | None = None

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

    async def room(self, most: int, limit: int) -> int:
        """How much of so many bytes may be written by work that begins now: what is kept and not in use makes room."""
        usage = await asyncio.to_thread(self._caches.look, time.time())
        going = sum(one.size_bytes for one in usage.kept if not one.in_use)
        if limit:
            most = min(most, limit - usage.kept_bytes - usage.scratch_bytes + going)
        free = _free_bytes(self._folder)
        room = max(0, most if free is None else min(most, free + going - self._reserve_bytes))
        return room - min(MARGIN_BYTES, room // 4)

    def hold(self, limit: int) -> None:
        """To be called every second: what is written stays within the limit, and some of the disk free. What is kept
        goes first; then who holds most is ended, in words."""
        if not self._writers or (self._holding is not None and not self._holding.done()):
            return
        now = time.monotonic()
        pause_s = LOOK_AGAIN_S if self._writers.changes != self._changes_then else LOOK_EVERY_S
        grown = self._writers.held_bytes - self._held_then
        free = _free_bytes(self._folder)
        is_short = (limit and self._taken + grown > limit) or (free is not None and free < self._reserve_bytes)
        if is_short or now - self._looked_s >= pause_s:
            self._holding = asyncio.ensure_future(self._hold(limit))

    async def _hold(self, limit: int) -> None:
        async with self._making_room:
            self._changes_then, self._looked_s = self._writers.changes, time.monotonic()
            held = self._writers.held_bytes
            usage = await asyncio.to_thread(self._within, limit)
            self._taken, self._held_then = usage.kept_bytes + usage.scratch_bytes, held
        free = _free_bytes(self._folder)
        if limit and self._taken > limit:
            taken, lent = size_words(self._taken), size_words(limit)
            why = f"of the {lent} of disk that this machine lends {taken} were in use"
        elif free is not None and free < self._reserve_bytes:
            why = f"the disk of this machine has {size_words(free)} left"
        else:
            return
        self._writers.end_largest(lambda held: f"{why}, and this held the most of it: {size_words(held)}")

    def _within(self, limit: int) -> Usage:
        """Blocks. What is left when all that may go for it has gone."""
        now = time.time()
        usage = self._caches.look(now)
        taken = usage.kept_bytes + usage.scratch_bytes
        free = _free_bytes(self._folder)
        allowed = min(limit or taken, taken - max(0, self._reserve_bytes - free) if free is not None else taken)
        return usage if taken <= allowed else self._caches.prune(max(1, allowed), now)

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
