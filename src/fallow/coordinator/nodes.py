"""The nodes that this coordinator has heard of, what their slots are assigned to, and who went silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from fallow.core.capability import implausible
from fallow.core.demand import Moves, NodeView
from fallow.core.presence import AWAITED_S, LEAST_INTERVAL_S, beat_interval_s, lost_after_s, quiet_after_s
from fallow.core.silence import Silences
from fallow.model.ids import JobId, NodeId, SlotKey
from fallow.model.job import JobSpec
from fallow.model.node import NodeInfo, NodeSpec
from fallow.model.states import NodeEvent, NodeState, node_transition
from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import Assign, Beat, BeatAck, NodeAnew, Place

REASSIGN_AFTER_S = 1.5
"""An assignment that a beat does not show by then is sent again."""
HERE = (NodeState.ALIVE, NodeState.DRAINING)
WITHHELD = "the machine's owner uses it"
SHOW_LOST_S = 3600.0
"""Listings show a lost or departed node for so long."""


@dataclass(slots=True)
class NodeEntry:
    spec: NodeSpec
    session: str
    state: NodeState
    seen: float
    seen_unix_s: float
    reason: str = ""
    assigned: dict[int, JobId | None] = field(default_factory=dict)
    sent_at: dict[int, float] = field(default_factory=dict)
    drain_wanted: bool = False
    tasks_done: int = 0
    load: float = 0.0
    memory_used_bytes: int = 0
    lease_count: int = 0
    judged_speed: float = 0.0
    """What its tasks show, where that is far from what it claims; 0: its claim stands."""
    judged_gpu_speed: float = 0.0
    """The same of its GPUs, in Gflop/s."""
    interval_s: float = LEAST_INTERVAL_S
    """How often it says that it beats."""
    asked_s: float = LEAST_INTERVAL_S
    """How often it was last asked to."""
    awaited_s: float | None = None
    """Since when it has work, and has not been heard of: a node at rest beats more seldom than it was asked to, and at
    once when it is given any."""
    paused: str = ""
    """Why its owner lets nothing run on it now."""
    paused_slots: frozenset[int] = frozenset()
    withheld: tuple[int, ...] = ()
    """Devices that its owner uses now."""
    is_quiet: bool = False
    """It is silent, and gets nothing new until it is heard of, or lost."""
    wasted_s: float = 0.0
    tied: dict[int, JobId] = field(default_factory=dict)
    """Slots that run a long task, and whose it is: whoever they are assigned to has them when that ends."""

    @property
    def rests(self) -> bool:
        """It said that it beats more seldom than it was asked to, whose figure follows the pool's size."""
        return self.interval_s >= self.asked_s + 1.0

    def is_overdue(self, now: float) -> bool:
        """It was given work at rest, and does not answer."""
        return self.awaited_s is not None and now - self.awaited_s > AWAITED_S

    def judged_spec(self) -> NodeSpec:
        """What it says of itself, with its speed as measured and without GPUs that are not what they say."""
        speed = self.judged_speed or self.spec.speed
        devices = self.spec.devices
        if self.judged_gpu_speed:
            devices = tuple(replace(device, speed=self.judged_gpu_speed) for device in devices)
        if any(device.speed and implausible(device) for device in devices):
            devices = tuple(replace(d, fault=implausible(d)) if implausible(d) and not d.fault else d for d in devices)
        if speed == self.spec.speed and devices is self.spec.devices:
            return self.spec
        return replace(self.spec, speed=speed, devices=devices)

    def spec_now(self) -> NodeSpec:
        """The same, without devices that its owner uses."""
        spec = self.judged_spec()
        if not self.withheld:
            return spec
        devices = [
            replace(device, fault=device.fault or WITHHELD) if number in self.withheld else device
            for number, device in enumerate(spec.devices)
        ]
        return replace(spec, devices=tuple(devices))

    def judgement(self) -> str:
        """Why its speed is not the one that it claims; '' where it is."""
        words = []
        if self.judged_speed:
            words.append(f"claims a speed of {self.spec.speed:.3g}; its tasks show {self.judged_speed:.3g}")
        if self.judged_gpu_speed:
            claim = gpu_claim(self.spec)
            words.append(f"claims GPUs of {claim:.3g} Gflop/s; their tasks show {self.judged_gpu_speed:.3g}")
        return "; ".join(words)


def gpu_claim(spec: NodeSpec) -> float:
    """Gflop/s of each of its GPUs, where they are all of one model and measured; else 0: a task may have run on any."""
    if len({device.model for device in spec.devices}) != 1:
        return 0.0
    return min(device.speed for device in spec.devices)


class NodeRegistry:
    """Presence and assignments. `spec_of` finds a job's spec for an Assign that must be sent again."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._epoch = 0
        self._seq = 0
        self._gone = 0
        """Entries of nodes that are here no more, as of the last look."""
        self._gone_as_of = 0
        self._watch_silences()
        self._awaited: set[NodeId] = set()
        """Nodes that have `awaited_s`."""
        self.entries: dict[NodeId, NodeEntry] = {}
        self.era = 0
        """Goes up when all that was known is forgotten."""
        self.membership = 0
        """Goes up when a node comes, goes, or is another now."""
        self.changed: dict[NodeId, None] = {}
        """Nodes whose view is another than the plan's: they came, went, or have other assignments than it gave."""
        self.forgotten: dict[JobId, None] = {}
        """Jobs whose assignments are gone since the last plan."""
        self.tied: dict[JobId, dict[SlotKey, None]] = {}
        """Slots that run a long task, by its job."""
        self.shares: Mapping[JobId, int] = {}
        """Slots of each job, by the last plan."""
        self.spec_of: Callable[[JobId], JobSpec | None] = lambda _: None
        self.place_elsewhere: Callable[[Place], bool] = lambda _: False
        self.on_anew: Callable[[NodeAnew], None] = lambda _: None
        """A node's agent has started anew."""

    def lead(self, epoch: int) -> None:
        """This coordinator's plans count from now on, under this epoch; what nodes do is learnt from their beats."""
        self._epoch = epoch
        self.entries.clear()
        self._awaited.clear()
        self._gone = 0
        self._watch_silences()
        self.era += 1
        self.membership += 1
        self.changed.clear()
        self.forgotten.clear()
        self.tied.clear()
        self.shares = {}

    def _watch_silences(self) -> None:
        self._quiet = Silences(lambda node_id: self._end(node_id, quiet_after_s))
        self._silent = Silences(lambda node_id: self._end(node_id, lost_after_s))

    def _is_another(self, node_id: NodeId) -> None:
        self.membership += 1
        self.changed[node_id] = None

    # ------------------------------------------------------------ presence

    def beat(self, beat: Beat, now: float, unix_s: float) -> tuple[NodeEntry | None, bool]:
        """Note a heartbeat and acknowledge it. Returns (entry or None while its spec is unknown, whether the set of
        usable slots changed)."""
        entry = self.entries.get(beat.node_id)
        changed = False
        if beat.spec is not None and (entry is None or entry.session != beat.session or entry.spec != beat.spec):
            fresh = NodeEntry(beat.spec, beat.session, NodeState.ALIVE, now, unix_s)
            fresh.assigned = {slot.slot: slot.job_id for slot in beat.slots}
            if entry is not None:
                fresh.drain_wanted = entry.drain_wanted
                fresh.tasks_done = entry.tasks_done
                fresh.judged_speed = entry.judged_speed
                fresh.judged_gpu_speed = entry.judged_gpu_speed
                fresh.wasted_s = entry.wasted_s
                fresh.tied = entry.tied
                if entry.session != beat.session:
                    self.on_anew(NodeAnew(beat.node_id, beat.spec.name, beat.session))
                else:
                    fresh.assigned, fresh.sent_at, fresh.state = entry.assigned, entry.sent_at, entry.state
            entry = self.entries[beat.node_id] = fresh
            changed = True
        interval_s = beat_interval_s(len(self.entries) - self._gone)
        ack = BeatAck(
            seq=beat.seq,
            want_spec=entry is None or entry.session != beat.session,
            drain=bool(entry and entry.drain_wanted),
            epoch=self._epoch,
            interval_s=interval_s,
        )
        self._connection.send(subjects.node(beat.node_id), ack)
        if entry is None or entry.session != beat.session:
            return None, False
        changed = changed or entry.is_quiet
        entry.is_quiet, entry.awaited_s, entry.asked_s = False, None, interval_s
        self._awaited.discard(beat.node_id)
        entry.seen = now
        is_oftener = beat.interval_s < entry.interval_s
        entry.interval_s = beat.interval_s
        entry.seen_unix_s = unix_s
        entry.load = beat.load
        entry.memory_used_bytes = beat.memory_used_bytes
        entry.lease_count = beat.busy
        before = entry.state
        entry.state = node_transition(before, NodeEvent.BEAT, beat.node_id)
        if beat.draining and entry.state is NodeState.ALIVE:
            entry.state = node_transition(entry.state, NodeEvent.DRAIN, beat.node_id)
            entry.reason = "draining"
        elif not beat.draining and entry.state is NodeState.DRAINING:
            entry.state = node_transition(entry.state, NodeEvent.RESUME, beat.node_id)
            entry.reason = ""
        if is_oftener or beat.node_id not in self._quiet or beat.node_id not in self._silent:
            self._quiet.watch(beat.node_id)
            self._silent.watch(beat.node_id)
        paused_slots = frozenset(slot.slot for slot in beat.slots if slot.paused and 0 <= slot.slot < entry.spec.slots)
        changed = changed or entry.state is not before or bool(entry.paused) != bool(beat.paused)
        changed = changed or (entry.paused_slots, entry.withheld) != (paused_slots, beat.withheld)
        entry.paused, entry.paused_slots, entry.withheld = beat.paused, paused_slots, beat.withheld
        slots = range(entry.spec.slots)
        tied = {slot.slot: slot.tied_to for slot in beat.slots if slot.tied_to is not None and slot.slot in slots}
        changed = self._tie(entry, tied) or changed
        if changed:
            self._is_another(beat.node_id)
        others = {slot.slot: slot.job_id for slot in beat.slots if slot.job_id != entry.assigned.get(slot.slot)}
        if len(others) > 1 and Counter(others.values()) == Counter(entry.assigned.get(slot) for slot in others):
            entry.assigned.update(others)  # they have changed places (agent.slot_exchange)
            self.changed[beat.node_id] = None
        for slot in beat.slots:
            wanted = entry.assigned.get(slot.slot)
            if slot.job_id != wanted and now - entry.sent_at.get(slot.slot, -1e9) > REASSIGN_AFTER_S:
                self.send_assign((beat.node_id, slot.slot), wanted, now)
        return entry, changed

    def _tie(self, entry: NodeEntry, tied: dict[int, JobId]) -> bool:
        """Note which of its slots run long tasks now. Returns whether they are others than before."""
        if entry.tied == tied:
            return False
        node_id = entry.spec.node_id
        for slot, job_id in entry.tied.items():
            slots = self.tied[job_id]
            del slots[node_id, slot]
            if not slots:
                del self.tied[job_id]
        for slot, job_id in tied.items():
            self.tied.setdefault(job_id, {})[node_id, slot] = None
        entry.tied = tied
        return True

    def bye(self, node_id: NodeId, session: str) -> bool:
        """The agent said that it ends. Returns whether the node was here."""
        entry = self.entries.get(node_id)
        if entry is None or entry.session != session or entry.state in (NodeState.LEFT, NodeState.LOST):
            return False
        entry.state = node_transition(entry.state, NodeEvent.BYE, node_id)
        entry.reason = "left"
        entry.assigned.clear()
        self._tie(entry, {})
        self._is_another(node_id)
        return True

    def note_quiet(self, now: float) -> bool:
        """Nodes that are silent get nothing new. Returns whether there are others than before."""
        news = False
        overdue = [node_id for node_id in self._awaited if self.entries[node_id].is_overdue(now)]
        for node_id in [*self._quiet.take(now), *overdue]:
            entry = self.entries[node_id]
            if entry.state is NodeState.ALIVE and not entry.is_quiet:
                entry.is_quiet = news = True
                self._is_another(node_id)
        return news

    def next_s(self, before: float) -> float:
        """When `note_quiet` or `silent` may name a node, where that is before then; else any later time."""
        dues = [self._quiet.next_s(before), self._silent.next_s(before)]
        dues += [awaited_s + AWAITED_S for node in self._awaited if (awaited_s := self.entries[node].awaited_s)]
        return min((due for due in dues if due is not None), default=before)

    def silent(self, now: float) -> list[NodeEntry]:
        """Nodes that have just been silent for too long: they are lost now."""
        lost = []
        for node_id in self._silent.take(now):
            entry = self.entries[node_id]
            entry.state = node_transition(entry.state, NodeEvent.SILENCE, node_id)
            entry.reason = f"silent for {lost_after_s(entry.interval_s, entry.rests):g} s"
            entry.assigned.clear()
            self._tie(entry, {})
            self._is_another(node_id)
            lost.append(entry)
        if self._gone_as_of != self.membership:
            self._gone_as_of = self.membership
            self._gone = sum(1 for entry in self.entries.values() if entry.state not in HERE)
        return lost

    def _end(self, node_id: NodeId, after_s: Callable[[float, bool], float]) -> float | None:
        entry = self.entries.get(node_id)
        if entry is None or entry.state not in HERE:
            return None
        return entry.seen + after_s(entry.interval_s, entry.rests)

    def drain(self, node_id: NodeId, wanted: bool) -> bool:
        entry = self.entries.get(node_id)
        if entry is None:
            return False
        entry.drain_wanted = wanted
        self._is_another(node_id)
        # Unasked: the next beat of a node at rest is some time away.
        ack = BeatAck(seq=0, drain=wanted, epoch=self._epoch, interval_s=entry.asked_s)
        self._connection.send(subjects.node(node_id), ack)
        return True

    def judge(self, node_id: NodeId, speed: float, gpu_speed: float) -> None:
        """What the tasks of a node show of it; 0: its claim stands."""
        entry = self.entries[node_id]
        if (speed, gpu_speed) != (entry.judged_speed, entry.judged_gpu_speed):
            entry.judged_speed, entry.judged_gpu_speed = speed, gpu_speed
            self._is_another(node_id)

    # ------------------------------------------------------------ assignments

    def is_here(self, node_id: NodeId) -> bool:
        return self.entries[node_id].state in HERE

    def view(self, node_id: NodeId) -> NodeView | None:
        """For the matcher; None: the node is not here."""
        entry = self.entries.get(node_id)
        if entry is None or entry.state not in HERE:
            return None
        is_open = entry.state is NodeState.ALIVE and not (entry.drain_wanted or entry.paused or entry.is_quiet)
        if entry.paused:
            # All of it, and so closed: what its slots have stays until its owner is away again.
            return NodeView(entry.judged_spec(), entry.assigned, is_open)
        if not entry.tied:
            return NodeView(entry.spec_now(), entry.assigned, is_open, entry.paused_slots)
        # Slots with a long task are none to plan with. What they are assigned to is for when it ends.
        free = {slot: job_id for slot, job_id in entry.assigned.items() if slot not in entry.tied}
        return NodeView(entry.spec_now(), free, is_open, entry.paused_slots | entry.tied.keys())

    def views(self) -> Iterator[NodeView]:
        """Of all nodes that are here."""
        return (view for node_id in self.entries if (view := self.view(node_id)) is not None)

    def alive_specs(self) -> list[NodeSpec]:
        return [entry.judged_spec() for entry in self.entries.values() if entry.state is NodeState.ALIVE]

    def assign(self, moves: Sequence[tuple[NodeId, Moves]], now: float) -> None:
        for node_id, moved in moves:
            entry = self.entries.get(node_id)
            if entry is None:
                continue
            for slot, job_id in moved:
                if entry.assigned.get(slot) != job_id:
                    entry.assigned[slot] = job_id
                    self.send_assign((node_id, slot), job_id, now)

    def send_assign(self, key: SlotKey, job_id: JobId | None, now: float) -> None:
        """Tell the agent, or the owner of the job, who tells the agent."""
        spec = self.spec_of(job_id) if job_id is not None else None
        entry = self.entries[key[0]]
        self._seq += 1
        if job_id is not None and entry.awaited_s is None and entry.rests:
            entry.awaited_s = now
            self._awaited.add(key[0])
        if job_id is not None and spec is None:
            share = self.shares.get(job_id, 0)
            if self.place_elsewhere(Place(job_id, key[0], key[1], self._seq, self._epoch, share)):
                entry.sent_at[key[1]] = now
                return
            entry.assigned[key[1]] = None
            self.changed[key[0]] = None
        entry.sent_at[key[1]] = now
        self._connection.send(subjects.node(key[0]), Assign(key[1], self._seq, self._epoch, spec))

    def forget_job(self, job_id: JobId) -> None:
        """The job ended: its slots are free (agents hear it by Revoke)."""
        self.forgotten[job_id] = None
        for entry in self.entries.values():
            for slot, assigned in entry.assigned.items():
                if assigned == job_id:
                    entry.assigned[slot] = None

    # ------------------------------------------------------------ listings

    def count_tasks(self, done: Mapping[NodeId, int]) -> None:
        for node_id, count in done.items():
            entry = self.entries.get(node_id)
            if entry is not None:
                entry.tasks_done += count

    def count_waste(self, wasted_s: Mapping[NodeId, float]) -> None:
        for node_id, seconds in wasted_s.items():
            entry = self.entries.get(node_id)
            if entry is not None:
                entry.wasted_s += seconds

    def slot_count(self) -> int:
        return sum(entry.spec.slots for entry in self.entries.values() if entry.state is NodeState.ALIVE)

    def has_strangers(self) -> bool:
        """Whether nodes work here that run nothing without a sandbox."""
        return any(entry.spec.least_tier > 0 for entry in self.entries.values() if entry.state is NodeState.ALIVE)

    def infos(self, now: float) -> tuple[NodeInfo, ...]:
        infos = []
        for entry in self.entries.values():
            gone = entry.state in (NodeState.LOST, NodeState.LEFT)
            if gone and now - entry.seen > SHOW_LOST_S:
                continue
            jobs: dict[str, int] = {}
            for job_id in entry.assigned.values():
                if job_id is not None and not gone:
                    jobs[job_id] = jobs.get(job_id, 0) + 1
            infos.append(
                NodeInfo(
                    spec=entry.judged_spec() if gone else entry.spec_now(),
                    state="draining" if entry.drain_wanted and not gone else str(entry.state),
                    reason=entry.reason if gone or entry.state is NodeState.DRAINING else entry.judgement(),
                    seen_unix_s=entry.seen_unix_s,
                    busy_slots=0 if gone else min(entry.lease_count, entry.spec.slots),
                    jobs=jobs,
                    tasks_done=entry.tasks_done,
                    load=entry.load,
                    memory_used_bytes=entry.memory_used_bytes,
                    wasted_s=entry.wasted_s,
                    paused="" if gone else entry.paused,
                )
            )
        return tuple(infos)
