"""Looks after the disk of the blobs, beside the coordinator's work: how much room there is, and what nobody needs any
more. In threads of its own, since a bucket or a disk may be slow. `core.room` says what follows from how much room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fallow.coordinator.blob_refs import BlobRefs
from fallow.coordinator.blob_store import BlobStore
from fallow.coordinator.disk_room import DiskRoom
from fallow.model.errors import FallowError
from fallow.store.protocol import Store, StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

SWEEP_S = 2.0
COLLECT_S = 600.0
COLLECT_SHORT_S = 60.0
"""Where room is short."""
LEFT_S = 30.0
"""How often the garbage of coordinators that are gone is looked for."""
RENEW_S = 60.0
LIVE_TIMES = 12
"""Garbage that the store still names is looked at again so often: rows of what was read are deleted in bulk."""
UNUSED_KEPT_S = 7 * 86_400.0
"""What no job names is kept so long after it was put (in a folder: after it was last asked for): objects that scripts
have put are named by nothing that a coordinator can read."""


class Housekeeping:
    """`start` it once and have it `turn` now and then; `stop` waits for what is being deleted. `leads`: whether this
    coordinator is the one that collects for all of them. `is_busy`: whether there are jobs. `is_well`: whether it hears
    of all that is put: what was put while it did not is nobody's only in its own eyes."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        refs: BlobRefs,
        room: DiskRoom,
        *,
        leads: Callable[[], bool],
        is_busy: Callable[[], bool] = lambda: True,
        is_well: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._refs = refs
        self._room = room
        self._leads = leads
        self._is_busy = is_busy
        self._is_well = is_well
        self._pool = ThreadPoolExecutor(1, "housekeeping")
        self._task: asyncio.Task[None] | None = None
        self._unwell_at = 0.0
        self._next_s = self._collected_s = self._left_s = self._renewed_s = float("inf")
        self._seen_live: dict[str, int] = {}
        """How often garbage was found to be named in the store."""

    def start(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next_s, self._left_s = now + SWEEP_S, now + LEFT_S
        self._collected_s = self._renewed_s = self._unwell_at = now

    async def stop(self) -> None:
        self._next_s = float("inf")
        if self._task is not None:
            self._task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, lambda: self._pool.shutdown(cancel_futures=True))

    def turn(self, now: float) -> None:
        """Begin what is due, on the loop's clock; nothing while the last is under way."""
        if not self._is_well():
            self._unwell_at = now
        if now < self._next_s or (self._task is not None and not self._task.done()):
            return
        self._next_s = now + SWEEP_S
        if self._may_matter or (self._leads() and now >= self._left_s) or now >= self._collect_s:
            self._task = asyncio.get_running_loop().create_task(self._work())

    @property
    def _may_matter(self) -> bool:
        return self._is_busy() or bool(self._refs)

    @property
    def _collect_s(self) -> float:
        return self._collected_s + (COLLECT_SHORT_S if self._room.is_short else COLLECT_S)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        await self._work_once(loop.time())
        while self._may_matter and (wait_s := self._room.look_again_s) < SWEEP_S:
            await asyncio.sleep(wait_s)
            await self._work_once(loop.time())

    async def _work_once(self, now: float) -> None:
        await self.look()
        await self.sweep(now)
        if self._leads() and now >= self._left_s:
            self._left_s = now + LEFT_S
            await self._take_left(now)
        if self._refs.unstored and now >= self._renewed_s + RENEW_S:
            self._renewed_s = now
            await self._in_thread(self._blobs.renew_used, list(self._refs.unstored))
        if now >= self._collect_s:
            self._collected_s = now
            self._blobs.renew()
            if self._leads():
                await self.collect(now)

    async def look(self) -> None:
        """At how much room there is, where there is something that may take it."""
        if not self._may_matter:
            return
        self._room.looks()
        try:
            self._room.seen(await self._in_thread(self._blobs.room))
        except OSError as error:
            log.warning("it cannot be seen how much room is left for blobs: %s", error)
            self._room.seen(None)

    async def sweep(self, now: float) -> int:
        """Delete what is due. Returns how many blobs."""
        refs = self._refs
        kept_s = self._room.garbage_kept_s(self._blobs.remove_after_s, self._blobs.remove_least_s)
        due = refs.take_due(now, kept_s)
        fresh = refs.take_fresh()
        if not due and not fresh:
            return 0
        try:
            count, again = await self._in_thread(self._remove, due, fresh, [*due, *refs.garbage()])
        except (StoreError, FallowError, OSError) as error:
            log.warning("%d blobs that nobody needs cannot be deleted now: %s", len(due), error)
            refs.put_back(due, now)
            return 0
        refs.put_back(again, now)
        return count

    async def collect(self, now: float) -> int:
        """Delete what no job of any coordinator needs and is old. Returns how many blobs."""
        deleted = 0
        kept_s = self._room.orphans_kept_s
        try:
            deleted = await self._in_thread(self._blobs.collect, self._store.live_among, UNUSED_KEPT_S)
            if now - self._unwell_at > kept_s:
                deleted += await self._in_thread(
                    self._blobs.collect_orphans, self._store.live_among, self._refs.needed, kept_s
                )
        except (StoreError, FallowError, OSError) as error:
            log.warning("the collection of blobs that nobody needs stopped, and is run again later: %s", error)
            return deleted
        if deleted:
            log.info("%d blobs that no job needs were deleted", deleted)
        return deleted

    async def _take_left(self, now: float) -> None:
        """What a coordinator that is gone could not delete any more."""
        try:
            left = await self._in_thread(self._blobs.take_left_garbage)
        except OSError as error:
            log.warning("what other coordinators left cannot be read: %s", error)
            return
        if left:
            log.info("%d blobs are deleted that a coordinator has left that is gone", len(left))
            self._refs.put_back(left, now)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _remove(self, due: list[str], fresh: list[str], garbage: list[str]) -> tuple[int, Sequence[str]]:
        self._blobs.note_garbage(fresh, garbage)
        if not due:
            return 0, ()
        # Another coordinator's job may name the same blob; or a row of our own that is to be deleted in a moment.
        live = self._store.live_among(due)
        for digest in due:
            if digest not in live:
                self._seen_live.pop(digest, None)
        count, young = self._blobs.remove([digest for digest in due if digest not in live], self._refs.needed)
        again = []
        for digest in live:
            times = self._seen_live.pop(digest, 0) + 1
            if times < LIVE_TIMES:
                self._seen_live[digest] = times
                again.append(digest)
        again += young
        if len(garbage) == len(due) and not again:
            self._blobs.note_garbage((), ())
        return count, again
