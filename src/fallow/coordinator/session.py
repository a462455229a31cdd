"""A coordinator's session: the row that it renews, and the knowledge of when it has lapsed.

An owner that was stopped, cut off or starved past its lease must not speak: `valid` is asked before every reply, on
the monotonic clock, which goes on while a process is stopped. Others judge it by their own monotonic clocks too
(core/sessions); no clock that can be set has a say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fallow.core.sessions import Renewal, SessionWatch
from fallow.model.ids import JobId
from fallow.store.protocol import Kept, Store, StoreError, WrongPool
from fallow.store.schema import at_work

log = logging.getLogger(__name__)

TTL_S = 1.6
"""A session that was not renewed for so long, by the clock of another coordinator that watches, is ended by that one,
and its jobs may be taken over."""
RENEW_S = 0.4
"""A coordinator, or its store, may stand still for twice that and keep what it owns."""
LATE_S = 0.1
"""A renewal may come so much later, if it comes with something else then."""
EARLY_S = 0.05
"""A turn that comes so much before its time is in time."""
MARGIN_S = 0.1
"""The owner falls silent this much before others may take over."""
LAPSED_S = 0.03
"""So soon after another's session has ended it is looked who owns what: nobody waits for the next renewal."""
DEAF_S = 0.5
"""How long a coordinator may be without the pool's messages before it lets go: nobody reaches it, and what it owns is
free for others at once."""
ORPHANS_LIMIT = 1000


class Session:
    """Renews with every `turn` for which it is time, and until `pace` by a timer of its own. Nothing of a renewal
    wakes the loop but news. `lapsed` is awaited after one that came too late, before the session is valid again:
    whatever was owned may belong to others by now. A store that only one coordinator uses needs none of this
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
        self.on_orphans: Callable[[list[tuple[JobId, str]]], None] = lambda _: None
        """Jobs that nobody owns, and who did: with every renewal that hears of some, and the next one."""
        self.on_sooner: Callable[[], None] = lambda: None
        """`renew_at` is nearer than it was."""
        self.renew_at = float("inf")
        """When it is time for the next renewal, on the loop's clock."""
        self.renew_by = float("inf")
        """Until when that is to have begun."""
        self.trouble: StoreError | None = None
        """Why it cannot be renewed at the moment."""
        self._store = store
        self._epoch = 0
        self._watch = SessionWatch()
        self._watches_since = 0.0
        self._had_orphans = False
        self._loop = loop
        self._lapsed = lapsed
        self._valid_until = float("inf") if not shared else 0.0
        self._leads_until = float("inf") if not shared else 0.0
        self._pool = ThreadPoolExecutor(1, "session") if shared else None
        self._task: asyncio.Task[None] | None = None
        self._heard_at = loop.time()
        self._is_renewing = False
        self._working: asyncio.Task[None] | None = None

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
            lead = partial(self._store.acquire_leadership, self.owner, alone=True)
            term: int | None = await self._loop.run_in_executor(None, lead)
            self.leader_term = term or self.leader_term
            return
        await self._loop.run_in_executor(self._pool, self._refuse_other_pools)
        started = self._loop.time()
        self._heard_at = started
        kept = await self._loop.run_in_executor(self._pool, self._begin)
        self._valid_until = started + TTL_S - MARGIN_S
        self._watches_since = self._loop.time()
        self._hear(started, kept)
        self.go_on()

    def _begin(self) -> Kept:
        self._store.renew_session(self.owner, TTL_S, self._pool_mark)  # forgets those that ended long ago
        kept = self._keep()
        self._epoch = kept.epoch
        return kept

    def go_on(self) -> None:
        """Turn by a timer of its own: before there are turns, and after them."""
        if self._pool is not None and self._task is None:
            self._task = self._loop.create_task(self._keep_turning())

    def pace(self) -> None:
        """From now on `turn` is called in time."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _keep_turning(self) -> None:
        while True:
            self.turn(self._loop.time())
            await asyncio.sleep(max(EARLY_S, self.renew_at - self._loop.time()))

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

    def turn(self, now: float) -> None:
        """Renew, if it is time: on the session's thread, which tells the loop what is new."""
        if self._pool is None or self._is_renewing or now < self.renew_at - EARLY_S:
            return
        self._renew_in(now, RENEW_S)
        if self.hears():
            self._heard_at = now
        elif now - self._heard_at > DEAF_S:
            self._occupy(self._let_go())
            return
        if self._valid_until <= now:
            self._occupy(self._renew_after_lapse())
            return
        self._is_renewing = True
        self._pool.submit(self._renew, now)

    def _occupy(self, work: Coroutine[Any, Any, None]) -> None:
        """No renewal begins before this is done."""
        self._is_renewing = True

        async def run() -> None:
            try:
                await work
            except StoreError as error:
                self._note_trouble(error)
            finally:
                self._is_renewing = False

        self._working = self._loop.create_task(run())

    def _keep(self) -> Kept:
        """Renew, and end the sessions of those who have fallen silent. On the session's thread."""
        kept = self._store.keep_session(self.owner, TTL_S, self._pool_mark, ORPHANS_LIMIT)
        silent = self._watch.silent(kept.others, time.monotonic())
        ended = [each for each in silent if self._store.end_silent(each)]
        for each in ended:
            log.warning("coordinator %s has been silent for %.1f s: its session is over", each.owner, TTL_S)
        return self._keep() if ended else kept

    def _renew(self, started: float) -> None:
        """On the session's thread."""
        try:
            kept = self._keep()
        except StoreError as error:
            self._is_renewing = False
            self._tell(partial(self._note_trouble, error))
            return
        except BaseException as error:
            self._is_renewing = False
            log.error("a renewal of the session met an error", exc_info=error)
            return
        if kept.epoch != self._epoch or self._valid_until <= time.monotonic():  # others have ended it, or may have
            self._valid_until = self._leads_until = 0.0
            self._tell(lambda: self._occupy(self._renew_after_lapse()))
            return
        self._valid_until = started + TTL_S - MARGIN_S
        is_news = self.trouble is not None or (kept.term or 0) != self.leader_term
        if not is_news and kept.term is not None:
            self._leads_until = self._valid_until
        is_urgent = bool(kept.orphans) or self._had_orphans or self._look_in_s() < RENEW_S
        self._is_renewing = False
        if is_news or is_urgent:
            self._tell(partial(self._hear, started, kept))

    def _tell(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(callback)

    def _hear(self, started: float, kept: Kept) -> None:
        """On the loop: what a renewal brought."""
        self.trouble = None
        before = self.leader_term
        self.leader_term = kept.term or 0
        if kept.term:
            self._leads_until = started + TTL_S - MARGIN_S
        if self.leader_term and self.leader_term != before:
            self.on_leader()
        if (kept.orphans or self._had_orphans) and self.valid:
            self._had_orphans = bool(kept.orphans)
            self.on_orphans(kept.orphans)
        if self.renew_at == float("inf"):
            self._renew_in(started, RENEW_S)
        self._sooner(self._look_in_s())

    def _note_trouble(self, error: StoreError) -> None:
        if self.trouble is None:  # said once, not with every try
            log.warning("cannot renew this coordinator's session, trying on: %s", error)
        self.trouble = error
        self._sooner(RENEW_S / 2)

    def _renew_in(self, now: float, wait_s: float) -> None:
        self.renew_at = now + wait_s
        self.renew_by = self.renew_at + LATE_S

    def _look_in_s(self) -> float:
        """When to look again: with the next renewal, or as soon as the first of the others may have fallen silent."""
        return min(RENEW_S, max(0.0, self._watch.first_s - self._loop.time()) + LAPSED_S)

    def _sooner(self, wait_s: float) -> None:
        """At exactly that time, if it is before the one that was meant."""
        if (at := self._loop.time() + wait_s) < self.renew_at:
            self.renew_at = self.renew_by = at
            self.on_sooner()

    async def _renew_after_lapse(self) -> None:
        """Others may own by now what was owned here: that is looked up before anything is said."""
        assert self._pool is not None
        started = self._loop.time()
        renew = partial(self._store.renew_session, self.owner, TTL_S, self._pool_mark, anew=True)
        self._epoch = await self._loop.run_in_executor(self._pool, renew)
        self._watch = SessionWatch()  # where the store was away, the others need a moment to come back as well
        log.warning("this coordinator's session lapsed: it looks up what it still owns before it speaks again")
        await self._lapsed()
        self._valid_until = started + TTL_S - MARGIN_S
        again = self._loop.time()
        self._hear(again, await self._loop.run_in_executor(self._pool, self._keep))

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
        self.pace()
        if self._pool is not None:
            try:
                await self._loop.run_in_executor(self._pool, self._store.end_session, self.owner)
            except StoreError as error:
                log.warning("cannot end this coordinator's session: %s", error)
            self._pool.shutdown(wait=False)
