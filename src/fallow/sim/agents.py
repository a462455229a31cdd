"""What agents do, in virtual time: pull, run, hand in until acknowledged, name leases in beats, come and go.

Timers that repeat a message are drawn only when the message, or its answer, is lost: a repeat of what arrived changes
nothing, as the tests of the core show. So a day of 10,000 nodes has no event per heartbeat: that a lease has begun is
told to the owner when it looks (Owned.hear), as the beat before would have told it. Beats that may say what the owner
does not know (after a take-over, a cut, a lost message) are events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fallow.core.effects import Grant
from fallow.model.ids import Token
from fallow.model.parts import Death
from fallow.sim.network import REPEAT_LATENCIES
from fallow.sim.node import HandIn, Lease, Node, Slot
from fallow.sim.truth import JobRow
from fallow.wire.messages import BEAT_INTERVAL_S

if TYPE_CHECKING:
    from fallow.sim.world import World

PULL_AGAIN_S = 5.0
HAND_IN_AGAIN_S = (2.0, 5.0)
PREPARE_S = 2.0
"""Environment and function, where they are not there yet."""


class Agents:
    def __init__(self, world: World) -> None:
        self._world = world
        self._clock = world.clock
        self._chance = world.chance.random
        self._repeats_s = REPEAT_LATENCIES * world.options.latency_s
        self.useful_s = 0.0
        """Run time of leases that were handed in."""
        self.wasted_s = 0.0
        """Run time that came to nothing: nodes that left, workers that died, work that was revoked."""
        self.up_s = 0.0
        self.stale_leases = 0
        self.begun = 0

    # ------------------------------------------------------------ assignments

    def assign(self, slot: Slot, row: JobRow | None, epoch: int, session: int) -> None:
        self.settle(slot)
        node = slot.node
        if node.session != session or epoch < node.leader_epoch:
            return
        node.leader_epoch = epoch
        if slot.job is row or (row is not None and not row.is_open):
            return
        self._leave(slot)
        if row is not None:
            slot.job = row
            row.slots[slot] = None
            self._clock.after(PREPARE_S * self._chance(), self._prepared, slot, row, session)

    def _leave(self, slot: Slot) -> None:
        old = slot.job
        if old is None:
            return
        if slot.pull_open:
            self._world.to_owners(slot.node, old, "unpull", slot, slot.pull_seq)
            slot.pull_open = False
        if slot.queued is not None:
            lease, slot.queued = slot.queued, None
            self._give_back_whole(slot, lease)
        slot.job = None
        slot.is_prepared = False
        self._forget(slot, old)

    def _forget(self, slot: Slot, row: JobRow) -> None:
        if slot.job is not row and (slot.running is None or slot.running.row is not row):
            row.slots.pop(slot, None)

    def _prepared(self, slot: Slot, row: JobRow, session: int) -> None:
        self.settle(slot)
        if slot.node.session == session and slot.job is row and not slot.is_prepared:
            slot.is_prepared = True
            self._want(slot)

    # ------------------------------------------------------------ pulls

    def _want(self, slot: Slot) -> None:
        pull = self._next_pull(slot)
        if pull is not None:
            self._send_pull(slot, *pull)

    def _next_pull(self, slot: Slot) -> tuple[int, bool] | None:
        """(number, idle) of the pull to send now, if any."""
        if slot.job is None or not slot.is_prepared or slot.queued is not None:
            return None
        running = slot.running
        idle = running is None
        if running is not None and (running.row is not slot.job or running.alone):
            return None
        if slot.pull_open and (slot.pull_idle or not idle):
            return None
        slot.pull_seq += 1
        slot.pull_open = True
        slot.pull_idle = idle
        return slot.pull_seq, idle

    def _send_pull(self, slot: Slot, seq: int, idle: bool) -> None:
        assert slot.job is not None
        node, row = slot.node, slot.job
        if not node.rows & row.bit:
            node.rows |= row.bit
        if not idle and len(row.owners) == 1 and row.owners[0].only_notes_ahead():
            # It would have no other effect when it came, and until then nothing can come between.
            if self._world.network.reaches(node.zone):
                row.owners[0].note_ahead(slot, seq)
            else:
                self.lost_pull(slot, seq)
        elif not self._world.to_owners(node, row, "pull", slot, seq, idle):
            self.lost_pull(slot, seq)

    def lost_pull(self, slot: Slot, seq: int) -> None:
        self._clock.after(PULL_AGAIN_S, self.pull_again, slot, seq, slot.node.session)

    def pull_again(self, slot: Slot, seq: int, session: int) -> None:
        """Unless it was answered: a new number, since the owner gives no second answer to one it has answered."""
        self.settle(slot)
        if slot.node.session == session and slot.pull_open and slot.pull_seq == seq:
            slot.pull_open = False
            self._want(slot)

    def pulls_again(self, row: JobRow, slots: Sequence[tuple[Slot, int, int]]) -> None:
        """`pull_again` of many slots (their pulls' numbers, their nodes' sessions), whose messages travel together."""
        if not row.is_open:
            return
        network = self._world.network
        sent = []
        for slot, seq, session in slots:
            self.settle(slot)
            if slot.node.session != session or not slot.pull_open or slot.pull_seq != seq or slot.job is not row:
                continue
            slot.pull_open = False
            pull = self._next_pull(slot)
            if pull is None:
                continue
            slot.node.rows |= row.bit
            if row.owners and network.reaches(slot.node.zone):
                sent.append((slot, *pull))
            else:
                self.lost_pull(slot, pull[0])
        for owned in row.owners:
            self._clock.after(network.latency_s * (0.5 + self._chance()), self._world.deliver, owned, "pulls", (sent,))

    # ------------------------------------------------------------ leases

    def grant(self, grant: Grant, slot: Slot, row: JobRow, epoch: int) -> bool:
        """On its way to the node. False: it never arrives. What a slot that runs something is given ahead changes
        nothing before somebody looks at the slot: that takes no event."""
        node, network = slot.node, self._world.network
        if slot.coming is not None:
            self.settle(slot)
        if slot.running is None or slot.queued is not None or slot.job is not row:
            return network.post(node.zone, self.granted, (grant, slot, row, epoch, node.session))
        arrives_at = network.when(node.zone, self.granted, (grant, slot, row, epoch, node.session))
        if arrives_at is None:
            return False
        slot.coming = (arrives_at, grant, row, epoch, node.session)
        return True

    def settle(self, slot: Slot) -> None:
        """Somebody looks at the slot: what has come until now, it has; what is on its way is an event from now on."""
        coming = slot.coming
        if coming is not None:
            slot.coming = None
            at, grant, row, epoch, session = coming
            if at <= self._clock.now:
                self.granted(grant, slot, row, epoch, session)
            else:
                self._clock.put(at, self.granted, (grant, slot, row, epoch, session))

    def granted(self, grant: Grant, slot: Slot, row: JobRow, epoch: int, session: int) -> None:
        if slot.coming is not None:
            self.settle(slot)
        node = slot.node
        if node.session != session:
            return
        epochs = row.epochs
        if epoch < epochs[node.number]:
            self.stale_leases += 1
            return
        epochs[node.number] = epoch
        if slot.has_had(row, grant.token):
            return
        if slot.pull_open and grant.pull_seq >= slot.pull_seq and slot.job is row:
            slot.pull_open = False
        lease = Lease(row, grant.token, grant.start, grant.stop, grant.alone, self._clock.now + self._repeats_s)
        if slot.job is not row or slot.queued is not None:
            self._give_back_whole(slot, lease)
        else:
            slot.queued = lease
            self._begin_next(slot)
        self._want(slot)

    def grant_lost(self, slot: Slot, row: JobRow, session: int) -> None:
        """The node's beats do not name the lease, and its slot pulls again."""
        self._clock.after(PULL_AGAIN_S, self.beat, slot.node, row, session)
        self._clock.after(PULL_AGAIN_S + 0.5, self.pull_again, slot, slot.pull_seq, session)

    def _begin_next(self, slot: Slot) -> None:
        lease = slot.queued
        if lease is None or slot.running is not None:
            return
        slot.queued = None
        slot.running = lease
        lease.began_at = self._clock.now
        lease.task_s = lease.row.task_s / slot.node.speed * (0.6 + 0.8 * self._chance())
        self.begun += 1
        self._schedule_end(slot, lease)
        for owned in lease.row.owners:
            if owned.listens:
                owned.begun.pop(slot, None)
                owned.begun[slot] = None

    def _schedule_end(self, slot: Slot, lease: Lease) -> None:
        row = lease.row
        if row.poison:
            first = lease.start + (row.poison // 2 - lease.start) % row.poison
            if first < lease.stop:
                at = lease.began_at + (first - lease.start + 0.5) * lease.task_s
                self._clock.at(at, self._died, slot, lease, lease.version, first)
                return
        self._clock.at(
            lease.began_at + (lease.stop - lease.start) * lease.task_s, self._done, slot, lease, lease.version
        )

    def _done(self, slot: Slot, lease: Lease, version: int) -> None:
        if slot.running is not lease or lease.version != version:
            return
        if slot.coming is not None:
            self.settle(slot)
        run_s = self._clock.now - lease.began_at
        self.useful_s += run_s
        results = ((lease.start, lease.stop),) if lease.stop > lease.start else ()
        self._end(slot, HandIn(slot, lease, results, run_s=run_s))

    def _died(self, slot: Slot, lease: Lease, version: int, index: int) -> None:
        if slot.running is not lease or lease.version != version:
            return
        self.settle(slot)
        self.wasted_s += self._clock.now - lease.began_at
        self._end(slot, HandIn(slot, lease, (), deaths=(Death(index, "worker_lost", "killed by signal 9"),)))

    def _end(self, slot: Slot, item: HandIn) -> None:
        row = item.lease.row
        slot.running = None
        slot.remember(item.lease, self._clock.now)
        self._begin_next(slot)
        pull = self._next_pull(slot)
        if pull is not None and slot.job is row:
            item.pull = pull
        elif pull is not None:
            self._send_pull(slot, *pull)
        self._forget(slot, row)
        self.hand_in(item)

    def _give_back_whole(self, slot: Slot, lease: Lease) -> None:
        slot.remember(lease, self._clock.now)
        self.hand_in(HandIn(slot, lease, (), give_back=((lease.start, lease.stop),)))

    def take_back(self, slot: Slot, row: JobRow, token: Token, share: float, session: int) -> None:
        if slot.node.session != session:
            return
        self.settle(slot)
        if slot.queued is not None and slot.queued.row is row and slot.queued.token == token:
            lease, slot.queued = slot.queued, None
            self._give_back_whole(slot, lease)
            self._want(slot)
            return
        running = slot.running
        if running is None or running.row is not row or running.token != token:
            self._clock.after(PULL_AGAIN_S, self.beat, slot.node, row, session)  # which does not name it
            return
        begun = running.start + running.begun(self._clock.now)
        stop = max(begun, running.stop - round((running.stop - begun) * share))
        if stop < running.stop:
            back = (stop, running.stop)
            running.stop = stop
            running.version += 1
            self._schedule_end(slot, running)
            self.hand_in(HandIn(slot, running, (), give_back=(back,), ended=False))

    def revoke(self, node: Node, row: JobRow, epoch: int, tokens: Sequence[Token], session: int) -> None:
        """Forget these leases; no tokens: all of the job, and the job."""
        if node.session != session or epoch < row.epochs[node.number]:
            return
        for slot in node.slots:
            self.settle(slot)
            if slot.queued is not None and slot.queued.row is row and (not tokens or slot.queued.token in tokens):
                slot.remember(slot.queued, self._clock.now)
                slot.queued = None
            running = slot.running
            if running is not None and running.row is row and (not tokens or running.token in tokens):
                self.wasted_s += self._clock.now - running.began_at
                slot.remember(running, self._clock.now)
                slot.running = None
            if not tokens and slot.job is row:
                slot.job = None
                slot.pull_open = slot.is_prepared = False
            self._forget(slot, row)
            self._begin_next(slot)
            self._want(slot)

    # ------------------------------------------------------------ hand-ins and beats

    def hand_in(self, item: HandIn) -> None:
        node, row = item.node, item.lease.row
        node.unacked += 1
        if not node.rows & row.bit:
            node.rows |= row.bit
        self._send_hand_in(item)

    def _send_hand_in(self, item: HandIn) -> None:
        if item.acked or item.session < item.node.lost_before:
            return
        row = item.lease.row
        if row.ended_at >= 0:
            self.acknowledged(item)  # whoever gets it answers that there is no such job any more
        elif not self._world.to_owners(item.node, row, "hand_in", item):
            self.lost_hand_in(item)

    def lost_hand_in(self, item: HandIn) -> None:
        """It, or its answer."""
        if not item.acked and item.session >= item.node.lost_before:
            delay_s = HAND_IN_AGAIN_S[min(item.tries, 1)]
            item.tries += 1
            self._clock.after(delay_s, self._send_hand_in, item)

    def acknowledged(self, item: HandIn) -> None:
        if not item.acked and item.session >= item.node.lost_before:
            item.node.unacked -= 1
        item.acked = True

    def last_beat(self, node: Node) -> None:
        """The node is about to fall silent: what its beats have said until now, the owners have heard."""
        for slot in node.slots:
            self.settle(slot)
        for row in self._world.rows_of(node):
            for owned in list(row.owners):
                owned.hear_node(node)

    def beat(self, node: Node, row: JobRow, session: int) -> None:
        """What of the node's next heartbeat the owner of this job would not know already."""
        if node.session != session or not row.is_open:
            return
        for slot in node.slots:
            self.settle(slot)
        if not self._world.to_owners(node, row, "beats", ((node, node.held(row, self._clock.now)),)):
            self._clock.after(BEAT_INTERVAL_S, self.beat, node, row, session)

    def beats(self, row: JobRow, nodes: Sequence[tuple[Node, int]]) -> None:
        """`beat` of many nodes (under these sessions), whose messages travel together."""
        if not row.is_open:
            return
        network, now = self._world.network, self._clock.now
        sent = []
        for node, session in nodes:
            if node.session != session:
                continue
            if network.reaches(node.zone):
                for slot in node.slots:
                    self.settle(slot)
                sent.append((node, node.held(row, now)))
            else:
                self._clock.after(BEAT_INTERVAL_S, self.beat, node, row, session)
        for owned in row.owners:
            self._clock.after(network.latency_s * (0.5 + self._chance()), self._world.deliver, owned, "beats", (sent,))

    # ------------------------------------------------------------ coming and going

    def come(self, node: Node) -> None:
        if node.is_up:
            return
        node.is_up = True
        node.up_since = self._clock.now
        if node.is_known:
            self._world.declare_lost(node, "its agent started anew")
        self._world.hello(node)

    def go(self, node: Node, *, silently: bool) -> None:
        """Its owner is back (what is done is handed in, the rest given back), or its power is gone."""
        if not node.is_up:
            return
        if silently:
            self.last_beat(node)
        for slot in node.slots:
            self.settle(slot)
        node.is_up = False
        now = self._clock.now
        self.up_s += (now - node.up_since) * len(node.slots)
        node.session += 1
        for slot in node.slots:
            for lease in slot.leases():
                done = lease.start
                if lease.began_at >= 0:
                    if not silently:
                        done = min(lease.stop, lease.start + int((now - lease.began_at) / lease.task_s))
                    ran_s = (done - lease.start) * lease.task_s
                    self.useful_s += ran_s
                    self.wasted_s += now - lease.began_at - ran_s
                if not silently:
                    results = ((lease.start, done),) if done > lease.start else ()
                    self.hand_in(HandIn(slot, lease, results, give_back=((done, lease.stop),)))
                lease.row.slots.pop(slot, None)
            if slot.job is not None:
                slot.job.slots.pop(slot, None)
            slot.job = slot.running = slot.queued = None
            slot.is_prepared = slot.pull_open = False
            slot.recent.clear()
        for row in self._world.rows_of(node):
            row.epochs[node.number] = 0
        if silently:
            node.lost_before = node.session  # nobody is there to send them again
            node.unacked = 0
            self._world.fall_silent(node)
        else:
            self._world.say_bye(node)
