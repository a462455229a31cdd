"""Which jobs are this coordinator's: taking them up, handing them over, and letting go of what another owns.

A job's owner is the one who listens on its subject; the epoch in the store says who that is. See ARCHITECTURE.md,
'What keeps it sound'.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fallow.coordinator.context import Context
from fallow.coordinator.directory import Directory, leases_of
from fallow.coordinator.owned_job import OwnedJob
from fallow.coordinator.peers import Peers
from fallow.core.sessions import to_take
from fallow.model.ids import JobId
from fallow.store.protocol import StoreError
from fallow.wire import subjects
from fallow.wire.messages import Handover, Msg, NameLeases

log = logging.getLogger(__name__)

SPREAD_S = 0.25
REBALANCE_S = 2.5
"""One job at a time passes to a coordinator that has fewer: the next only when both have reported again."""
ANNOUNCE_AFTER_S = 0.3
"""Agents name their leases before the client of a job that was taken up sends again what the new owner lacks."""
ANNOUNCE_HANDED_S = 0.08
"""The same where the last owner has said what it had out, so that all are there: only calls that were on their way to
nodes are not among it."""
UNREAD_AGAIN_S = 4.0
DRAIN_S = 5.0
"""A coordinator that leaves waits this long for its store; what it could not release is taken over as from the dead."""


class Ownership:
    """The jobs that this coordinator owns, or is about to. `on_job` gets what comes on their subjects."""

    def __init__(
        self, context: Context, directory: Directory, peers: Peers, on_job: Callable[[JobId, Msg, str], None]
    ) -> None:
        self.context = context
        self.directory = directory
        self.peers = peers
        self._on_job = on_job
        self._last_pass = 0.0
        self._taking_over = False
        self._unread_at = [0.0]  # when to look for jobs that ended under owners that are gone
        self._rebalanced_at = 0.0
        self._passing: set[JobId] = set()
        self._released: set[JobId] = set()
        self._subscriptions: dict[JobId, Any] = {}
        directory.on_loaded = self.listen
        peers.on_handover = self._on_handover
        peers.on_lost = self._on_lost_peer
        context.session.on_orphans = self._on_orphans

    def tick(self, now: float) -> None:
        """On a shared store: look for jobs that ended under an owner that died, and pass on what is more than a fair
        share. (Jobs without an owner are found with every renewal of the session.)"""
        if self.context.session.shared and now - self._last_pass >= SPREAD_S:
            self._last_pass = now
            if self._unread_at and self._unread_at[0] <= now:
                self.context.loop.create_task(self.take_over())
            self._rebalance()

    def _on_orphans(self, orphans: Sequence[tuple[JobId, str]]) -> None:
        """With every renewal of the session."""
        job_ids, self._released = to_take(orphans, self._released)
        if job_ids:
            self.context.loop.create_task(self.take_over(job_ids))

    # ------------------------------------------------------------ listening

    def passing(self, job_id: JobId) -> bool:
        """Whether this coordinator is about to own the job."""
        return job_id in self._passing

    def silent(self, job_id: JobId) -> bool:
        """Whether another owns the job, or this coordinator is about to: not its own to answer for."""
        return job_id not in self._subscriptions or job_id in self._passing

    async def listen(self, job_id: JobId) -> None:
        if job_id not in self._subscriptions:
            self._subscriptions[job_id] = await self.context.connection.subscribe(
                subjects.job(job_id), lambda message, reply: self._on_job(job_id, message, reply)
            )

    def unlisten(self, job_id: JobId) -> None:
        subscription = self._subscriptions.pop(job_id, None)
        if subscription is not None:
            self.context.loop.create_task(self.context.connection.unsubscribe(subscription))

    # ------------------------------------------------------------ taking up

    async def _take(self, job_id: JobId, handed: Handover | None = None) -> None:
        """Listen first, so that no agent's answer is missed; then become the owner and ask who holds leases."""
        if job_id in self._passing or job_id in self.directory.active:
            return
        self._passing.add(job_id)
        try:
            await self.listen(job_id)
            await self.directory.take(job_id, handed)
            if job_id in self.directory.active:
                await self.listen(
                    job_id
                )  # its old memory may have been dropped meanwhile, and with it the subscription
        finally:
            self._passing.discard(job_id)
            if job_id not in self.directory.active:
                self.unlisten(job_id)
        if job_id not in self.directory.active:
            return
        epoch = self.directory.last_epoch(job_id)
        self.context.connection.send(subjects.NODES, NameLeases(job_id, epoch))
        wait_s = ANNOUNCE_AFTER_S if leases_of(handed, epoch) is None else ANNOUNCE_HANDED_S
        self.context.loop.call_later(wait_s, self.directory.active[job_id].announce)
        self.context.kick_matcher()

    async def take_over(self, orphans: Sequence[JobId] | None = None) -> None:
        """Become the owner of jobs that have none (None: look which those are): all of them at the start on a store
        of one's own, and those of dead coordinators on a shared one."""
        if self._taking_over:
            return
        self._taking_over = True
        try:
            for job_id in await self.directory.orphans() if orphans is None else orphans:
                await self._take(job_id)
            if self._unread_at and self._unread_at[0] <= self.context.now():
                del self._unread_at[0]
                for job_id in await self.directory.unread():
                    await self._take(job_id)
        except StoreError as error:
            log.warning("cannot look for jobs without an owner: %s", error)
        finally:
            self._taking_over = False

    def _on_lost_peer(self) -> None:
        self._unread_at = [0.0, self.context.now() + UNREAD_AGAIN_S]  # once more when its session is surely over

    # ------------------------------------------------------------ handing over

    def _rebalance(self) -> None:
        """With more jobs than a fair share, hand one over to the coordinator that has fewest."""
        now = self.context.now()
        if now - self._rebalanced_at < REBALANCE_S:
            return
        least = self.peers.least_loaded()
        mine = [o for o in self.directory.active.values() if o.is_written and not o.progress.is_final]
        if least is not None and len(mine) > least[1] + 1:
            self._rebalanced_at = now
            self.hand_over(mine[-1], least[0])

    def hand_over(self, owned: OwnedJob, to: str) -> asyncio.Future[None]:
        """Release the job in a commit of its own, then tell the other to take it up with the leases as they are.
        Should the message be lost, whoever looks for jobs without an owner finds it. Done when it is told."""
        job_id, epoch = owned.job_id, owned.epoch
        message = Handover(job_id, epoch, to, owned.leases_held())
        self._drop(job_id)
        told: asyncio.Future[None] = self.context.loop.create_future()

        def tell() -> None:
            self.context.connection.send(subjects.OWNERS, message)
            if not told.done():
                told.set_result(None)

        self.context.journal.run(lambda: self.context.store.release_job(job_id, epoch, owner=self.context.owner), tell)
        return told

    async def drain(self) -> None:
        """Hand over everything and be gone: SIGTERM where others go on."""
        if not self.context.session.shared:
            return
        self.context.draining = True
        told = []
        for owned in [o for o in self.directory.active.values() if not o.progress.is_final]:
            least = self.peers.least_loaded()
            told.append(self.hand_over(owned, least[0] if least is not None else ""))
        if told:
            await asyncio.wait(told, timeout=DRAIN_S)
        self.peers.report(leaving=True)

    def _on_handover(self, message: Handover) -> None:
        self.context.loop.create_task(self._receive(message))

    async def _receive(self, message: Handover) -> None:
        try:
            await self._take(message.job_id, message)
        except StoreError as error:
            log.warning("cannot take %s over: %s", message.job_id, error)

    # ------------------------------------------------------------ letting go

    def _drop(self, job_id: JobId) -> None:
        self.unlisten(job_id)
        owned = self.directory.forget(job_id)
        if owned is not None:
            owned.close()

    def lost(self, job_ids: Sequence[JobId]) -> None:
        """Another coordinator owns these: drop all memory of them."""
        for job_id in job_ids:
            log.warning("another coordinator took over %s", job_id)
            self._drop(job_id)
            self.context.loop.create_task(self._retake(job_id))

    async def _retake(self, job_id: JobId) -> None:
        """A commit was refused; should the store say that the job is ours all the same (a newer epoch of our own),
        load it anew."""
        with contextlib.suppress(StoreError):
            stored = await self.context.loop.run_in_executor(self.context.reader, self.context.store.get_job, job_id)
            if stored is not None and stored.owner == self.context.owner and not stored.state.is_final:
                await self._take(job_id)

    async def session_lapsed(self) -> None:
        """This coordinator was silent for too long: drop what others own by now, keep what nobody took."""
        context = self.context
        for job_id, owned in list(self.directory.active.items()):
            stored = await context.loop.run_in_executor(context.reader, context.store.get_job, job_id)
            if stored is not None and (stored.owner, stored.epoch) != (context.owner, owned.epoch):
                log.warning("another coordinator took over %s", job_id)
                self._drop(job_id)
