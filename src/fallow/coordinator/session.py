"""A coordinator's session: the row that it renews, and the knowledge of when it has lapsed.

An owner that was stopped, cut off or starved past its lease must not speak: `valid` is asked before every reply, on
the monotonic clock, which goes on while a process is stopped. Others judge it by their own monotonic clocks too
(core/sessions); no clock that can be set has a say.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from fallow.core.sessions import Renewal, SessionWatch
from fallow.model.ids import JobId
from fallow.store.protocol import Store, StoreError, WrongPool
from fallow.store.schema import at_work

log = logging.getLogger(__name__)

TTL_S = 1.7
"""A session that was not renewed for so long, by the clock of another coordinator that watches, is ended by that one,
and its jobs may be taken over."""
RENEW_S = 0.3
MARGIN_S = 0.1
"""The owner falls silent this much before others may take over."""
DEAF_S = 0.5
"""How long a coordinator may be without the pool's messages before it lets go: nobody reaches it, and what it owns is
free for others at once."""


class Session:
    """Renews until `close`. `lapsed` is awaited after a renewal that came too late, before the session is valid
    again: whatever was owned may belong to others by now. A store that only one coordinator uses needs none of this
    (shared=False)."""

    def __init__(
        self,
        store: Store,
        owner: str,
        loop: asyncio.AbstractEventLoop,
        lapsed: Callable[[], Awaitable[None]],
        *,
        shared: bool,
        pool_mark: str = "",
        is_own: bool = True,
    ) -> None:
        self.owner = owner
        self.shared = shared
        self._pool_mark = pool_mark
        self._is_own = is_own
        """This coordinator has worked on the store before: its secret may be a new one."""
        self.leader_term = 0 if shared else 1
        """Term of this coordinator's leadership; 0: another leads (or nobody)."""
        self.on_leader: Callable[[], None] = lambda: None
        self.hears: Callable[[], bool] = lambda: True
        """Whether clients and agents can reach this coordinator. One that nobody reaches lets its session lapse, so
        that others take over what it owns."""
        self.orphans: Callable[[], list[tuple[JobId, str]]] = list
        """Reads which jobs nobody owns, and who did: with every renewal, which is on the way to the store anyway."""
        self.on_orphans: Callable[[list[tuple[JobId, str]]], None] = lambda _: None
        self.trouble: StoreError | None = None
        """Why it cannot be renewed at the moment."""
        self._store = store
        self._epoch = 0
        self._watch = SessionWatch()
        self._watches_since = 0.0
        self._loop = loop
        self._lapsed = lapsed
        self._valid_until = float("inf") if not shared else 0.0
        self._leads_until = float("inf") if not shared else 0.0
        self._pool = ThreadPoolExecutor(1, "session") if shared else None
        self._task: asyncio.Task[None] | None = None
        self._heard_at = loop.time()

    @property
    def valid(self) -> bool:
        """Whether this coordinator may speak for what it owns."""
        return self._loop.time() < self._valid_until

    @property
    def leads(self) -> bool:
        """Whether this coordinator is the matcher's leader."""
        return self.leader_term > 0 and self._loop.time() < self._leads_until

    async def start(self) -> None:
        """Become known; raises StoreError in words if that cannot be."""
        if self._pool is None:
            # Alone on its store: the term only has to rise with every start.
            lead = functools.partial(self._store.acquire_leadership, self.owner, alone=True)
            term: int | None = await self._loop.run_in_executor(None, lead)
            self.leader_term = term or self.leader_term
            return
        await self._loop.run_in_executor(self._pool, self._refuse_other_pools)
        await self._renew()
        self._task = self._loop.create_task(self._keep_renewing())

    def _refuse_other_pools(self) -> None:
        """Coordinators of two pools on one store would take each other's jobs. A mark stands for a pool's secret."""

        def others() -> list[Renewal]:
            found = self._store.renewals()
            return [each for each in found if each.info and self._pool_mark and each.info != self._pool_mark]

        if owners := at_work(others):
            raise StoreError(
                f"this store is in use by another pool: its coordinator {owners[0]} has another secret. To join that "
                "pool, start this coordinator with its address; for a pool of its own, give it an empty database "
                "or a schema: ?schema=NAME."
            )
        if self._pool_mark and not self._store.knows_secret(self._pool_mark, self._is_own):
            raise WrongPool(
                "this store belongs to a pool with another secret, none of whose coordinators runs at this moment. To "
                "go on with that pool, give this coordinator its secret; for a pool of its own, an empty database or "
                "a schema: ?schema=NAME."
            )

    async def _renew(self) -> None:
        assert self._pool is not None
        started = self._loop.time()
        if 0.0 < self._valid_until <= started:
            await self._renew_after_lapse()
            return
        in_time = await self._loop.run_in_executor(self._pool, self._renew_in_time, started)
        if in_time is None:
            self._fall_silent()
            await self._renew_after_lapse()
            return
        term, orphans = in_time
        self._leads_on(started, term)
        if self.valid:
            self.on_orphans(orphans)

    def _renew_in_time(self, started: float) -> tuple[int | None, list[tuple[JobId, str]]] | None:
        """On the session's thread: (term or None, jobs that nobody owns), or None where the session had lapsed before
        it was renewed, or others have ended it."""
        epoch = self._store.renew_session(self.owner, TTL_S, self._pool_mark)
        if self._epoch not in (0, epoch) or 0.0 < self._valid_until <= time.monotonic():
            return None
        self._epoch = epoch
        self._valid_until = started + TTL_S - MARGIN_S
        self._end_silent()
        term = self._store.acquire_leadership(self.owner)
        try:
            return term, self.orphans()
        except StoreError as error:
            log.warning("cannot look for jobs without an owner: %s", error)
            return term, []

    def _end_silent(self) -> None:
        renewals = self._store.renewals()
        now = time.monotonic()
        self._watches_since = self._watches_since or now
        for renewal in self._watch.silent([each for each in renewals if each.owner != self.owner], now):
            if self._store.end_silent(renewal):
                log.warning("coordinator %s has been silent for %.1f s: its session is over", renewal.owner, TTL_S)

    async def _renew_after_lapse(self) -> None:
        """Others may own by now what was owned here: that is looked up before anything is said."""
        assert self._pool is not None
        started = self._loop.time()
        renew = functools.partial(self._store.renew_session, self.owner, TTL_S, self._pool_mark, anew=True)
        self._epoch = await self._loop.run_in_executor(self._pool, renew)
        self._watch = SessionWatch()  # where the store was away, the others need a moment to come back as well
        log.warning("this coordinator's session lapsed: it looks up what it still owns before it speaks again")
        await self._lapsed()
        self._valid_until = started + TTL_S - MARGIN_S
        term = await self._loop.run_in_executor(self._pool, self._store.acquire_leadership, self.owner)
        self._leads_on(started, term)

    def _leads_on(self, started: float, term: int | None) -> None:
        before = self.leader_term
        self.leader_term = term or 0
        if term:
            self._leads_until = started + TTL_S - MARGIN_S
        if self.leader_term and self.leader_term != before:
            self.on_leader()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            if self.hears():
                self._heard_at = self._loop.time()
            elif self._loop.time() - self._heard_at > DEAF_S:
                await self._let_go()
                continue
            try:
                await self._renew()
            except StoreError as error:
                if self.trouble is None:  # said once, not with every try
                    log.warning("cannot renew this coordinator's session, trying on: %s", error)
                self.trouble = error
            else:
                self.trouble = None

    def _fall_silent(self) -> None:
        now = self._loop.time()
        self._valid_until, self._leads_until = min(self._valid_until, now), min(self._leads_until, now)

    async def _let_go(self) -> None:
        """Fall silent, then say so to the store."""
        assert self._pool is not None
        now = self._loop.time()
        if self._valid_until <= now:
            return
        log.warning("nobody reaches this coordinator: what it owns is for others to take")
        self._fall_silent()
        try:
            await self._loop.run_in_executor(self._pool, self._store.end_session, self.owner)
        except StoreError as error:
            log.warning("cannot end this coordinator's session; it lapses by itself: %s", error)

    async def others(self) -> list[str]:
        """Owner ids of the other coordinators with a session, as the store knows them; none where it cannot be read.
        Soon after the start that takes a moment: those that are gone are to be known."""
        if self._pool is None:
            return []
        await asyncio.sleep(max(0.0, self._watches_since + TTL_S + 2 * RENEW_S - self._loop.time()))
        try:
            renewals = await self._loop.run_in_executor(self._pool, self._store.renewals)
        except StoreError as error:
            log.warning("cannot read who else coordinates: %s", error)
            return []
        return [renewal.owner for renewal in renewals if renewal.owner != self.owner]

    async def close(self) -> None:
        """End the session at once, so that others need not wait for it to lapse."""
        if self._task is not None:
            self._task.cancel()
        if self._pool is not None:
            try:
                await self._loop.run_in_executor(self._pool, self._store.end_session, self.owner)
            except StoreError as error:
                log.warning("cannot end this coordinator's session: %s", error)
            self._pool.shutdown(wait=False)
