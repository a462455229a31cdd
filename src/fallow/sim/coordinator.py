"""Simulated coordinators around the real core: they own jobs under epochs, journal before they acknowledge, crash,
stop, are cut off from the store, and are taken over from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fallow.core.effects import AskBack, Drop, Effect, Ended, Grant, Record, RecordFault, Wake
from fallow.core.held_progress import UNNAMED_GRACE_S
from fallow.core.job import JobProgress
from fallow.model.ids import Digest, Interval, NodeId
from fallow.model.job import Blob
from fallow.model.parts import HeldLease, ResultPage
from fallow.model.states import JobState
from fallow.sim.node import HandIn, Node, Slot
from fallow.sim.truth import Broken, JobRow

if TYPE_CHECKING:
    from fallow.sim.world import World

SESSION_S = 3.0
"""A coordinator that has not renewed its session for so long owns nothing any more."""
ADOPTION_S = 2.5
COMMIT_S = 0.01
LATER_BEAT_S = UNNAMED_GRACE_S + 1.0
BUFFER_LIMIT = 100_000
"""Messages that wait for a coordinator that is stopped."""
CHECK_EVERY = 256
"""Changes of a job between two checks of its whole state, at least; and four times as many as it has leases."""
PAGE = Blob(Digest("00"), 1, b"x")


class Coordinator:
    """`session_ends` is infinite while it renews its session."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_up = True
        self.is_stopped = False
        self.is_cut = False
        """From the store."""
        self.session = 0
        self.session_ends = float("inf")
        self.owned: dict[JobRow, Owned] = {}
        self.buffer: list[tuple[Owned, str, tuple[Any, ...]]] = []
        self.deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """Commits that wait until it runs again and reaches the store."""

    @property
    def can_serve(self) -> bool:
        return self.is_up and not self.is_stopped and not self.is_cut


class Owned:
    """One job in the memory of one coordinator. Dead when that memory is gone."""

    def __init__(self, world: World, coordinator: Coordinator, row: JobRow) -> None:
        self._world = world
        self.coordinator = coordinator
        self.row = row
        self.is_new = row.epoch == 0
        self.epoch = world.truth.acquire(row, coordinator.number)
        self.is_dead = False
        self.served = 0.0
        hold = 0.0 if self.is_new else world.clock.now + ADOPTION_S
        self.progress = JobProgress(row.spec, self.epoch, hold_until=hold)
        if self.is_new:
            self.progress.add_inputs(0, row.total)
            self.progress.end_inputs(row.total)
        else:
            self.progress.restore(
                done=row.done, cursor=row.total, total=row.total, state=JobState.RUNNING, failed=len(row.failed)
            )
        self._wake_at = -1.0
        self._changes = 0
        self._nodes: dict[NodeId, None] = {}

    # ------------------------------------------------------------ what arrives

    def pull(self, slot: Slot, seq: int, idle: bool) -> None:
        if not self.progress.is_final:
            self.progress.pull(slot.key, seq, idle, (), self._world.clock.now)
            self.dispatch()

    def unpull(self, slot: Slot, seq: int) -> None:
        self.progress.unpull(slot.key, seq)

    def hand_in(self, item: HandIn) -> None:
        lease = item.lease
        now = self._world.clock.now
        effects = self.progress.hand_in(
            slot=item.slot.key,
            token=lease.token,
            results=[ResultPage(start, stop, start, PAGE) for start, stop in item.results],
            give_back=item.give_back,
            deaths=item.deaths,
            ended=item.ended,
            run_s=item.run_s,
            now=now,
        )
        if item.pull is not None and not self.progress.is_final:
            self.progress.pull(item.slot.key, *item.pull, (), now)
        self._perform(effects, item)
        self.dispatch()

    def beat(self, node: Node, held: Sequence[HeldLease]) -> None:
        before = len(self.progress.leases)
        self._perform(self.progress.beat(node.node_id, held, self._world.clock.now), None)
        if len(self.progress.leases) > before:
            # What it adopted may have been handed in since the beat was sent; a later one shows it.
            self._world.clock.after(LATER_BEAT_S, self._world.agents.beat, node, self.row, node.session)
        if self.progress.pulls:
            self.dispatch()

    def node_lost(self, node: Node, reason: str) -> None:
        self._perform(self.progress.node_lost(node.node_id, reason), None)
        self.dispatch()

    # ------------------------------------------------------------ effects

    def dispatch(self) -> None:
        progress = self.progress
        self._perform(progress.dispatch(self._world.clock.now), None)
        if progress.pulls and not progress.todo:
            self._world.leader.kick()

    def _perform(self, effects: Sequence[Effect], item: HandIn | None) -> None:
        self._changes += 1
        if effects:
            self._perform_all(effects, item)
        elif item is not None:
            self._acknowledge(item)
        if self._changes > CHECK_EVERY and self._changes > 4 * len(self.progress.leases):
            self._changes = 0
            self.progress.check()

    def _perform_all(self, effects: Sequence[Effect], item: HandIn | None) -> None:
        world = self._world
        results: list[Interval] = []
        faults: list[int] = []
        ended = False
        for effect in effects:
            match effect:
                case Grant():
                    self._grant(effect)
                case AskBack():
                    slot = world.slot_of(effect.slot)
                    world.to_node(
                        slot.node, world.agents.take_back, slot, self.row, effect.token, effect.share, slot.node.session
                    )
                case Drop():
                    world.revoke(world.node_of(effect.node), self.row, effect.tokens)
                case Record():
                    results.append((effect.page.start, effect.page.stop))
                case RecordFault():
                    faults.append(effect.fault.index)
                case Ended():
                    ended = True
                case Wake():
                    self._wake(effect.at)
        if results or faults or ended:
            world.clock.after(COMMIT_S, self._commit, results, faults, ended, item)
        elif item is not None:
            self._acknowledge(item)

    def _grant(self, grant: Grant) -> None:
        world = self._world
        coordinator = self.coordinator
        if self.row.epoch != self.epoch and world.clock.now < coordinator.session_ends:
            raise Broken(f"{self.row.job_id} has another owner while the session of {coordinator.number} holds")
        slot = world.slot_of(grant.slot)
        world.grants += 1
        world.clock.note("grant", self.row.job_id, grant.slot, grant.token, grant.start, grant.stop)
        session = slot.node.session
        if not world.to_node(slot.node, world.agents.granted, grant, slot, self.row, self.epoch, session):
            world.agents.grant_lost(slot, self.row, session)

    def _wake(self, at: float) -> None:
        now = self._world.clock.now
        if now < self._wake_at <= at:
            return
        self._wake_at = at
        self._world.clock.at(at + 0.001, self._woken, at)

    def _woken(self, at: float) -> None:
        if self.is_dead or self._wake_at != at:
            return
        if self.coordinator.is_stopped:
            self._world.clock.after(1.0, self._woken, at)
            return
        self._wake_at = -1.0
        self.dispatch()
        self._world.leader.kick()

    # ------------------------------------------------------------ the journal

    def _commit(self, results: list[Interval], faults: list[int], ended: bool, item: HandIn | None) -> None:
        world = self._world
        if self.is_dead:
            if item is not None:
                world.agents.lost_hand_in(item)
            return
        if not self.coordinator.can_serve:
            self.coordinator.deferred.append((self._commit, (results, faults, ended, item)))
            return
        if not world.truth.commit(self.row, self.epoch, results, faults, ended, world.clock.now):
            if item is not None:
                world.agents.lost_hand_in(item)
            self.die()
            return
        world.clock.note("recorded", self.row.job_id, results, faults)
        if item is not None:
            self._acknowledge(item)
        if ended:
            world.job_ended(self.row)

    def _acknowledge(self, item: HandIn) -> None:
        # The answer's way takes no event: what matters of it is whether it arrives.
        network = self._world.network
        network.sent += 1
        if (network.cut and item.node.zone in network.cut) or self._world.chance.random() < network.loss:
            network.lost += 1
            self._world.agents.lost_hand_in(item)
        else:
            self._world.agents.acknowledged(item)

    def die(self) -> None:
        """Its memory is gone: what was not committed did not happen."""
        self.is_dead = True
        self.coordinator.owned.pop(self.row, None)
        self._world.unsubscribe(self)
