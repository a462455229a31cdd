"""Deletes blobs that nobody needs, beside the coordinator's work: soon after the last reference went, and now and then
whatever else has been left. In threads of its own, since a bucket may be slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fallow.coordinator.blob_refs import BlobRefs
from fallow.coordinator.blob_store import BlobStore
from fallow.model.errors import FallowError
from fallow.store.protocol import Store, StoreError

log = logging.getLogger(__name__)

SWEEP_S = 2.0
COLLECT_S = 600.0
UNUSED_KEPT_S = 7 * 86_400.0
"""What no job names is kept so long after it was put (in a folder: after it was last asked for): objects that scripts
have put are named by nothing that a coordinator can read."""


class Housekeeping:
    """`start` it once and have it `turn` now and then; `stop` waits for what is being deleted. `leads`: whether this
    coordinator is the one that collects for all of them."""

    def __init__(self, store: Store, blobs: BlobStore, refs: BlobRefs, leads: Callable[[], bool]) -> None:
        self._store = store
        self._blobs = blobs
        self._refs = refs
        self._leads = leads
        self._pool = ThreadPoolExecutor(1, "housekeeping")
        self._task: asyncio.Task[None] | None = None
        self._sweep_s = self._collect_s = float("inf")

    def start(self) -> None:
        now = asyncio.get_running_loop().time()
        self._sweep_s, self._collect_s = now + SWEEP_S, now + COLLECT_S

    async def stop(self) -> None:
        self._sweep_s = self._collect_s = float("inf")
        if self._task is not None:
            self._task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, lambda: self._pool.shutdown(cancel_futures=True))

    def turn(self, now: float) -> None:
        """Begin what is due, on the loop's clock; nothing while the last is under way."""
        if now < self._sweep_s or (self._task is not None and not self._task.done()):
            return
        self._sweep_s = now + SWEEP_S
        if self._refs.is_due(now) or now >= self._collect_s:
            self._task = asyncio.get_running_loop().create_task(self._work(now))

    async def _work(self, now: float) -> None:
        await self.sweep(now)
        if now >= self._collect_s:
            self._collect_s = now + COLLECT_S
            self._blobs.renew()
            if self._leads():
                await self.collect()

    async def sweep(self, now: float) -> int:
        """Delete what is due. Returns how many blobs."""
        due = self._refs.take_due(now)
        if not due:
            return 0
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._remove, due)
        except (StoreError, FallowError, OSError) as error:
            log.warning("%d blobs that nobody needs cannot be deleted now: %s", len(due), error)
            self._refs.put_back(due, now)
            return 0

    async def collect(self) -> int:
        """Delete what no job of any coordinator needs and is old. Returns how many blobs."""
        try:
            deleted = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._blobs.collect, self._store.live_among, UNUSED_KEPT_S
            )
        except (StoreError, FallowError, OSError) as error:
            log.warning("the collection of blobs that nobody needs stopped, and is run again later: %s", error)
            return 0
        if deleted:
            log.info("%d blobs that no job needs were deleted", deleted)
        return deleted

    def _remove(self, due: list[str]) -> int:
        # Another coordinator's job may name the same blob.
        live = self._store.live_among(due)
        return self._blobs.remove([digest for digest in due if digest not in live], self._refs.needed)
