"""What nodes hold of a job, as their heartbeats say: leases that live on, are adopted, were lost on the way, or are
lost with their node. See core.progress for the theory of operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from fallow.core.effects import Drop, Effect, Grant
from fallow.core.endgame import FREQUENT_BEATS_S
from fallow.core.failures import NODE_LOSSES_LIMIT
from fallow.core.lease import KnownSlot, LiveLease
from fallow.core.progress import Progress
from fallow.core.remainder import Remainder
from fallow.core.sizing import budget_s
from fallow.model.ids import Interval, NodeId, SlotKey
from fallow.model.parts import Death, HeldLease

UNNAMED_GRACE_S = 4.0
"""A lease that no beat of its node has named for so long never arrived."""
SENT_AGAIN_AFTER_S = 0.25
"""A lease that its node's beat does not name was still on its way, or is lost: after so long the same one is sent once
more. (Its node takes a lease once.)"""


class HeldProgress(Progress):
    """See the module. All times are monotonic seconds of the caller."""

    def beat(
        self, node: NodeId, held: Sequence[HeldLease], now: float, interval_s: float = 0.0, anew: bool = False
    ) -> list[Effect]:
        """A heartbeat names the leases of this job that the node holds: known ones live on, unknown ones are
        adopted where their tasks are free, and told to stop where they are not. `interval_s`: how often the node
        beats; where that is seldom there are many nodes, and messages may have waited long behind each other's.
        `anew`: what was sent to it before was lost with its connection."""
        effects: list[Effect] = []
        if self.is_final:
            if held:
                effects.append(Drop(node, (), f"the job is {self.state}"))
            return effects
        named = set()
        again_after_s = 0.0 if anew else SENT_AGAIN_AFTER_S
        for lease in held:
            named.add(lease.token)
            known = self.leases.get(lease.token)
            if known is None:
                known = self._adopt(node, lease, now)
                if known is None:
                    effects.append(Drop(node, (lease.token,), "given to another"))
                    continue
            known.seen_at = now
            if lease.index >= 0:
                known.index = lease.index
                known.index_since = now - lease.elapsed_s
                known.index_holds_until = now if interval_s > FREQUENT_BEATS_S else inf
        for lost in self._leases_of(node):
            if lost.token in named:
                continue
            if now - lost.seen_at > max(UNNAMED_GRACE_S, interval_s):
                self._close(lost)
                lost.place.seq = -1  # the slot repeats the pull that this lease was to answer
            elif lost.pull_seq >= 0 and lost.is_whole and now - lost.sent_at > again_after_s:
                lost.sent_at = now
                effects.append(granted(lost, frozenset(), again=True))
        return effects

    def has_unnamed(self, node: NodeId, held: Sequence[HeldLease]) -> bool:
        """Whether the node is thought to hold leases that this heartbeat of it did not name."""
        leases = self._leases_of(node)
        return len(leases) > len(held) or bool({lease.token for lease in leases}.difference(h.token for h in held))

    def node_quiet(self, node: NodeId) -> None:
        """It may be gone: until it is heard of, its slots get nothing."""
        self.quiet.add(node)
        for place in self._places.get(node, ()):
            if place.waits or place.is_late:
                self._drop_pull(place)
                place.is_aside = True

    def node_heard(self, node: NodeId) -> None:
        """It is there after all: its slots still wait for what they asked for."""
        if node not in self.quiet:
            return
        self.quiet.discard(node)
        for place in self._places.get(node, ()):
            if place.is_aside:
                place.is_aside = False
                if not self.is_final:
                    place.waits = True
                    (self._idle if place.idle else self._ahead)[place] = None

    def _know(self, slot: SlotKey) -> KnownSlot:
        place = self._known.get(slot)
        if place is None:
            place = self._known[slot] = KnownSlot(slot)
            places = self._places.setdefault(slot[0], [])
            places.append(place)
            places.sort(key=lambda known: known.key[1])
        return place

    def _leases_of(self, node: NodeId) -> list[LiveLease]:
        """In the time of that node's slots, however many nodes there are: each beats once a second."""
        return [self.leases[token] for place in self._places.get(node, ()) for token in place.tokens]

    def _adopt(self, node: NodeId, held: HeldLease, now: float) -> LiveLease | None:
        free: list[Interval] = []
        for start, stop in self.todo.overlap(held.start, min(held.stop, self.cursor)):
            free += self.todo.remove(start, stop)
        if not free:
            return None
        place = self._know((node, held.slot))
        lease = LiveLease(held.token, place, held.start, held.stop, Remainder.of(free), now, now)
        self._hold(lease)
        return lease

    def node_lost(self, node: NodeId, reason: str) -> list[Effect]:
        """The node is gone: its leases are to do again. A task under which many nodes were lost is failed. Which
        task was in progress is known from the last heartbeat; of a lease begun since then it is taken to be the
        first that was not handed in, which counts as run again but is blamed for nothing."""
        effects: list[Effect] = []
        self.quiet.discard(node)
        leases = self._leases_of(node)
        begun = {lease.place.tokens[0] for lease in leases}
        for place in self._places.pop(node, ()):
            self._drop_pull(place)
            del self._known[place.key]
        for lease in leases:
            index = lease.index
            if lease.doubled or not lease.pending:
                pass
            elif index not in lease.pending:
                self.retried += lease.token in begun
            else:
                self.node_losses += 1
                self.retried += 1
                losses = self.failures.node_lost(index)
                if losses >= NODE_LOSSES_LIMIT:
                    lease.pending.remove(index, index + 1)
                    message = f"{losses} nodes were lost while they ran this task; the last: {reason}"
                    effects += self._fault(index, Death(index, "node_lost", message), node)
            self._close(lease)
        return effects + self.finish_if_done()


def granted(lease: LiveLease, held_pages: frozenset[int], again: bool = False) -> Grant:
    """The answer to the pull that the lease is for. `held_pages`: what the slot's node has of its inputs."""
    return Grant(
        lease.slot,
        lease.pull_seq,
        lease.token,
        lease.start,
        lease.stop,
        budget_s(lease.aimed_s),
        held_pages,
        lease.alone,
        lease.attempt,
        again,
    )
