"""What a simulated node holds: its slots, their leases, and hand-ins until they are acknowledged."""

from __future__ import annotations

from collections.abc import Sequence

from fallow.core.effects import Grant
from fallow.model.ids import Interval, NodeId, SlotKey, Token
from fallow.model.node import NodeSpec
from fallow.model.parts import Death, HeldLease
from fallow.sim.truth import JobRow


class Lease:
    __slots__ = (
        "alone",
        "began_at",
        "heard",
        "repeats_until",
        "row",
        "start",
        "stop",
        "task_s",
        "token",
        "version",
    )

    def __init__(self, row: JobRow, token: Token, start: int, stop: int, alone: bool, repeats_until: float) -> None:
        self.row = row
        self.token = token
        self.start = start
        self.stop = stop
        self.alone = alone
        self.repeats_until = repeats_until
        """The network may repeat its grant until then."""
        self.began_at = -1.0
        self.task_s = 0.0
        self.version = 0
        """Goes up when its end moves: the event of an older end means nothing."""
        self.heard = 0
        """Highest epoch whose owner has heard that it runs."""

    def begun(self, now: float) -> int:
        """How many of its tasks have begun."""
        if self.began_at < 0:
            return 0
        return min(self.stop - self.start, int((now - self.began_at) / self.task_s) + 1)


class HandIn:
    """What is sent until it is acknowledged."""

    __slots__ = (
        "acked",
        "deaths",
        "ended",
        "give_back",
        "lease",
        "node",
        "pull",
        "results",
        "run_s",
        "session",
        "slot",
        "tries",
    )

    def __init__(
        self,
        slot: Slot,
        lease: Lease,
        results: Sequence[Interval],
        *,
        give_back: Sequence[Interval] = (),
        deaths: Sequence[Death] = (),
        ended: bool = True,
        run_s: float = 0.0,
    ) -> None:
        self.slot = slot
        self.node = node = slot.node
        self.session = node.session
        self.lease = lease
        self.results = results
        self.give_back = give_back
        self.deaths = deaths
        self.ended = ended
        self.run_s = run_s
        self.pull: tuple[int, bool] | None = None
        self.acked = False
        self.tries = 0


class Slot:
    __slots__ = (
        "coming",
        "is_prepared",
        "job",
        "key",
        "node",
        "pull_idle",
        "pull_open",
        "pull_seq",
        "queued",
        "recent",
        "running",
    )

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.key: SlotKey = (node.node_id, number)
        self.job: JobRow | None = None
        self.is_prepared = False
        self.running: Lease | None = None
        self.queued: Lease | None = None
        self.coming: tuple[float, Grant, JobRow, int, int] | None = None
        """A grant that arrives then, while the slot runs something: looked at when the slot is (Agents.settle)."""
        self.recent: list[tuple[float, JobRow, Token]] = []
        """Ended leases whose grants may yet come again, and until when: they begin nothing."""
        self.pull_seq = 0
        self.pull_open = False
        self.pull_idle = False

    def leases(self) -> list[Lease]:
        return [lease for lease in (self.running, self.queued) if lease is not None]

    def has_had(self, row: JobRow, token: Token) -> bool:
        for lease in (self.running, self.queued):
            if lease is not None and lease.row is row and lease.token == token:
                return True
        return any(other is row and known == token for _, other, known in self.recent)

    def remember(self, lease: Lease, now: float) -> None:
        """The lease has ended."""
        recent = self.recent
        if recent and recent[0][0] < now:
            self.recent = recent = [entry for entry in recent if entry[0] >= now]
        if now < lease.repeats_until:
            recent.append((lease.repeats_until, lease.row, lease.token))


class Node:
    """`session` goes up when it goes down: what was meant for an earlier one finds nobody."""

    __slots__ = (
        "hellos",
        "is_known",
        "is_up",
        "leader_epoch",
        "lost_before",
        "node_id",
        "number",
        "rows",
        "session",
        "slots",
        "spec",
        "speed",
        "unacked",
        "up_since",
        "zone",
    )

    def __init__(self, number: int, slots: int, speed: float, zone: int) -> None:
        self.number = number
        self.node_id = NodeId(f"node-{number:06d}")
        self.spec = NodeSpec(self.node_id, str(self.node_id), slots, slots, 8 << 30, 1 << 40, "linux", ("3.11",), "1")
        self.speed = speed
        self.zone = zone
        self.slots = [Slot(self, i) for i in range(slots)]
        self.is_up = False
        self.is_known = False
        """Whether the coordinators take it for alive."""
        self.hellos = 0
        self.session = 0
        self.leader_epoch = 0
        self.rows = 0
        """Jobs that may remember something of this node: a bit each (JobRow.bit)."""
        self.unacked = 0
        """Hand-ins that it sends until they are acknowledged."""
        self.lost_before = 0
        """Hand-ins of sessions before this one are lost with its power."""
        self.up_since = 0.0

    def held(self, row: JobRow, now: float) -> list[HeldLease]:
        """What a heartbeat says to the job's owner. Its slots are settled."""
        found = []
        for number, slot in enumerate(self.slots):
            for lease in (slot.running, slot.queued):
                if lease is not None and lease.row is row:
                    begun = lease.begun(now)
                    index = lease.start + begun - 1 if begun else -1
                    elapsed = now - lease.began_at - (begun - 1) * lease.task_s if begun else 0.0
                    found.append(HeldLease(row.job_id, lease.token, number, lease.start, lease.stop, index, elapsed))
        return found
