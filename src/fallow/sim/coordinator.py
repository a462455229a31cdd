"""Simulated coordinators around the real core: they own jobs under epochs, journal before they acknowledge, crash,
stop, are cut off from the store, and are taken over from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fallow.core.effects import AskBack, Drop, Effect, Ended, Grant, Record, RecordFault, Wake
from fallow.core.held_progress import UNNAMED_GRACE_S
from fallow.core.job import JobProgress
from fallow.model.ids import Digest, Interval
from fallow.model.job import Blob
from fallow.model.parts import HeldLease, ResultPage
from fallow.model.states import JobState
from fallow.sim.node import HandIn, Node, Slot
from fallow.sim.truth import Broken, JobRow
from fallow.wire.messages import BEAT_INTERVAL_S

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
"""Changes of a job between two checks of its whole state, at least; and four times as many as it has leases. Each step
looks at what it moved."""
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
        self.session_ends = math.inf
        self.owned: dict[JobRow, Owned] = {}
        self.buffer: list[tuple[Owned, str, tuple[Any, ...]]] = []
        self.deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """Commits that wait until it runs again and reaches the store."""

    @property
    def can_serve(self) -> bool:
        return self.is_up and not self.is_stopped and not self.is_cut

    def serves_until(self, strikes_at: float) -> float:
        """Until when it surely serves, if the next fault strikes then."""
        return strikes_at if self.can_serve and self.session_ends == math.inf else 0.0


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
        self._grants_from = 0.0 if self.is_new else world.clock.now + ADOPTION_S
        self.progress = JobProgress(row.spec, self.epoch, hold_until=self._grants_from)
        if self.is_new:
            self.progress.add_inputs(0, row.total)
            self.progress.end_inputs(row.total)
        else:
            self.progress.restore(
                done=row.done, cursor=row.total, total=row.total, state=JobState.RUNNING, failed=len(row.failed)
            )
        self._wake_at = -1.0
        self._changes = 0
        self.begun: dict[Slot, None] = {}
        """Slots that began a lease of it which no beat has named yet, in the order in which they did; from the first
        look on (`listens`)."""
        self.listens = False
        self._hears_soon = False

    # ------------------------------------------------------------ what arrives

    def pull(self, slot: Slot, seq: int, idle: bool) -> None:
        if not self.progress.is_final:
            self.progress.pull(slot.key, seq, idle, ())
            self.dispatch()

    def pulls(self, pulls: Sequence[tuple[Slot, int, bool]]) -> None:
        """Of many slots, in one message."""
        if not self.progress.is_final:
            for slot, seq, idle in pulls:
                self.progress.pull(slot.key, seq, idle, ())
            self.dispatch()

    def only_notes_ahead(self) -> bool:
        """Whether a slot that asks for a lease ahead would only be noted, and nothing can come before its message."""
        world, progress = self._world, self.progress
        now = world.clock.now
        return (
            progress.todo.count > 0
            and not progress.failures.waiting
            and not progress.failures.delayed
            and not progress.gives_ahead
            and not progress.is_final
            and now >= self._grants_from
            and self.coordinator.serves_until(world.faults.strikes_at) > now + 2 * world.options.latency_s
        )

    def note_ahead(self, slot: Slot, seq: int) -> None:
        self.progress.pull(slot.key, seq, False, ())

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
            self.progress.pull(item.slot.key, *item.pull, ())
        self._perform(effects, item)
        self.dispatch()

    def beats(self, beats: Sequence[tuple[Node, Sequence[HeldLease]]]) -> None:
        self._take_beats(beats)
        if self.progress.pulls:
            self.dispatch()

    def _take_beats(self, beats: Iterable[tuple[Node, Sequence[HeldLease]]]) -> None:
        progress, now, begun = self.progress, self._world.clock.now, self.begun
        again = []
        for node, held in beats:
            named = {lease.token for lease in held}
            for slot in node.slots:
                running = slot.running
                if running is not None and running.row is self.row and running.token in named:
                    running.heard = max(running.heard, self.epoch)
                    begun.pop(slot, None)
            before = len(progress.leases)
            effects = progress.beat(node.node_id, held, now)
            self._perform(effects, None)
            if len(progress.leases) > before or progress.has_unnamed(node.node_id, held):
                # What it adopted may have been handed in since the beat was sent, and what it does not name may be on
                # its way, or lost: a later one shows it.
                again.append((node, node.session))
        if again:
            self._world.clock.after(LATER_BEAT_S, self._world.agents.beats, self.row, again)

    def node_lost(self, node: Node, reason: str) -> None:
        self._perform(self.progress.node_lost(node.node_id, reason), None)
        self.dispatch()

    # ------------------------------------------------------------ beats that are no events

    def hear_node(self, node: Node) -> None:
        """What the node's last beat said of leases that it has begun."""
        if node.unacked or self.is_dead or self.coordinator.is_stopped:
            return
        heard_at = self._world.clock.now - self._world.options.latency_s
        for slot in node.slots:
            running = slot.running
            if (
                running is not None
                and running.row is self.row
                and running.heard < self.epoch
                and running.began_at + BEAT_INTERVAL_S <= heard_at
            ):
                self._take_beats([(node, node.held(self.row, heard_at))])
                return

    def _hear(self) -> None:
        """Every beat until now that names a lease begun since the last look. Beats are lost as often as other messages;
        a node whose hand-in is on its way is heard once that has come."""
        world = self._world
        begun = self.begun
        if not self.listens:
            self.listens = True
            unheard = []
            for slot in self.row.slots:
                running = slot.running
                if running is not None and running.row is self.row and running.heard < self.epoch:
                    unheard.append((running.began_at, slot.key, slot))
            begun.update((slot, None) for _, _, slot in sorted(unheard))
        heard_at = world.clock.now - world.options.latency_s
        nodes: dict[Node, None] = {}
        heard, later = [], []
        for slot in begun:
            running = slot.running
            if running is not None and running.row is self.row:
                if running.began_at + BEAT_INTERVAL_S > heard_at:
                    break
                if slot.node.unacked or not world.network.reaches(slot.node.zone):
                    later.append(slot)
                    continue
                nodes[slot.node] = None
            heard.append(slot)
        for slot in heard:
            del begun[slot]
        for slot in later:
            del begun[slot]
            begun[slot] = None
        self._take_beats([(node, self._says(node, heard_at)) for node in nodes])

    def _says(self, node: Node, now: float) -> list[HeldLease]:
        for slot in node.slots:
            self._world.agents.settle(slot)
        return node.held(self.row, now)

    def _listen(self) -> None:
        self._hears_soon = False
        if not self.is_dead and not self.coordinator.is_stopped:
            self.dispatch()

    # ------------------------------------------------------------ effects

    def dispatch(self) -> None:
        progress = self.progress
        if not progress.todo.count and progress.pulls and not self._hears_soon and (self.begun or not self.listens):
            # Near the end it matters which tasks run for long.
            self._hear()
            if self.begun:
                self._hears_soon = True
                self._world.clock.after(BEAT_INTERVAL_S, self._listen)
        self._perform(progress.dispatch(self._world.clock.now), None)
        if not progress.todo.count and progress.pulls:
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
            if type(effect) is Grant:  # these two are most
                self._check_granted(effect)
                self._grant(effect)
                continue
            if type(effect) is Record:
                results.append((effect.page.start, effect.page.stop))
                continue
            match effect:
                case AskBack():
                    slot = world.slot_of(effect.slot)
                    world.to_node(
                        slot.node, world.agents.take_back, slot, self.row, effect.token, effect.share, slot.node.session
                    )
                case Drop():
                    world.revoke(world.node_of(effect.node), self.row, self.epoch, effect.tokens)
                case RecordFault():
                    faults.append(effect.fault.index)
                case Ended():
                    ended = True
                case Wake():
                    self._wake(effect.at)
        if results or faults or ended:
            for start, stop in results:
                if not self.progress.done.covers(start, stop) or self.progress.todo.intersects(start, stop):
                    raise Broken(f"[{start}, {stop}) was handed in, and is not just done: {self.progress.story()}")
            now = world.clock.now
            if self.coordinator.serves_until(world.faults.strikes_at) > now + COMMIT_S:
                self._commit(results, faults, ended, item)  # nothing can come between
            else:
                world.clock.after(COMMIT_S, self._commit, results, faults, ended, item)
        elif item is not None:
            self._acknowledge(item)

    def _check_granted(self, grant: Grant) -> None:
        progress, start, stop = self.progress, grant.start, grant.stop
        lease = progress.leases.get(grant.token)
        if lease is None or progress.todo.intersects(start, stop) or progress.done.intersects(start, stop):
            raise Broken(f"[{start}, {stop}) was leased, and is not just in that lease: {progress.story()}")

    def _grant(self, grant: Grant) -> None:
        world = self._world
        coordinator = self.coordinator
        if self.row.epoch != self.epoch and world.clock.now < coordinator.session_ends:
            raise Broken(f"{self.row.job_id} has another owner while the session of {coordinator.number} holds")
        slot = world.slot_of(grant.slot)
        world.grants += 1
        world.clock.note("grant", self.row.job_id, grant.slot, grant.token, grant.start, grant.stop)
        if not world.agents.grant(grant, slot, self.row, self.epoch):
            world.agents.grant_lost(slot, self.row, slot.node.session)

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
        elif self.epoch < self.row.epochs[item.node.number]:
            self._world.agents.lost_hand_in(item)  # agents take no word of a former owner's
        else:
            self._world.agents.acknowledged(item)

    def die(self) -> None:
        """Its memory is gone: what was not committed did not happen."""
        self.is_dead = True
        self.coordinator.owned.pop(self.row, None)
        self._world.unsubscribe(self)
