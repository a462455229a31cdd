"""Slots that run long tasks: nobody waits behind them while others' slots change hands, and all shares are fair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fallow.coordinator.kept_planner import KeptPlanner
from fallow.coordinator.nodes import NodeRegistry
from fallow.coordinator.tied_slots import TiedSlots
from fallow.core.matching import JobDemand
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.node import NodeSpec
from fallow.wire.messages import Beat, SlotState

from .test_kept_planner import Agents

NODE = NodeId("00000000000000aa")


class Leader:
    """One node of some slots, and the leader's plans for it."""

    def __init__(self, slots: int) -> None:
        self.agents = Agents()
        self.registry = NodeRegistry(self.agents)  # type: ignore[arg-type]
        self.registry.lead(1)
        self.spec = NodeSpec(NODE, "n", slots, slots, 1 << 33, 1 << 30, "linux", ("3.11",), "0.1")
        self.kept = KeptPlanner(self.registry)
        self.tied_slots = TiedSlots(self.registry)
        self.jobs: dict[JobId, JobDemand] = {}
        self.registry.spec_of = lambda job_id: self.jobs[job_id].spec if job_id in self.jobs else None
        self.runs: dict[int, JobId] = {}
        self.seq = 0
        self.now = 100.0
        self.beat()

    def job(self, name: str, want: int, served: float = 0.0) -> JobId:
        job_id = JobId(name)
        spec = JobSpec(job_id, name, JobKind.MAP, ClientId("c"), Blob(Digest(""), 0, b""))
        self.jobs[job_id] = JobDemand(spec, want, served, len(self.jobs))
        return job_id

    def beat(self, has: Mapping[int, JobId | None] | None = None) -> None:
        """What the agent says: the slots of `runs` have had a task of those jobs for long. `has`: what its slots are
        assigned to, where that is not what the leader thinks."""
        self.seq += 1
        assigned = has or (self.registry.entries[NODE].assigned if self.registry.entries else {})
        slots = tuple(
            SlotState(slot, assigned.get(slot), tied_to=self.runs.get(slot)) for slot in range(self.spec.slots)
        )
        self.registry.beat(Beat(NODE, "s", self.seq, slots, 0, spec=self.spec), self.now, 0.0)

    def plan(self) -> dict[int, JobId | None]:
        """The slots' jobs after a plan."""
        self.now += 2.0
        demands = list(self.jobs.values())
        result = self.kept.plan(self.tied_slots.demands(demands))
        self.tied_slots.settle(demands, result, self.now)
        self.registry.shares = result.shares
        self.registry.assign(result.moves, self.now)
        assert self.kept.compare()
        return dict(self.registry.entries[NODE].assigned)


def test_a_call_gets_a_slot_that_changes_hands_and_not_one_behind_a_long_task() -> None:
    leader = Leader(3)
    long = leader.job("long", 1)
    others = [leader.job("a", 1000), leader.job("b", 1000)]
    before = leader.plan()
    leader.runs = {slot: long for slot, job_id in before.items() if job_id == long}
    leader.beat()
    # However much the long task was served: its slot cannot be had.
    leader.jobs[long].served = 1000.0
    for other in others:
        leader.jobs[other].served = 10.0
    call = leader.job("call", 1)
    after = leader.plan()
    assert [slot for slot, job_id in after.items() if job_id == call and slot not in leader.runs] != []
    assert leader.registry.shares == {long: 1, call: 1, others[0]: 1}


def test_what_is_tied_counts_as_its_jobs_share() -> None:
    leader = Leader(8)
    long = leader.job("long", 100)
    leader.plan()
    leader.runs = dict.fromkeys(range(6), long)
    leader.beat()
    other, third = leader.job("other", 100), leader.job("third", 100)
    after = leader.plan()
    assert {after[6], after[7]} == {other, third}, "what is free goes to those who have less"
    assert leader.registry.shares == {long: 6, other: 1, third: 1}
    assert Counter(after.values()) == {long: 3, other: 3, third: 2}, "the rest of their shares is promised to them"
    again = leader.plan()
    assert again == after, "they are promised once"
    leader.runs = {slot: long for slot in leader.runs if after[slot] == long}
    leader.beat()
    ended = leader.plan()
    assert max(Counter(ended.values()).values()) == 3


def test_a_node_that_goes_takes_its_long_tasks_along() -> None:
    leader = Leader(2)
    long = leader.job("long", 2)
    leader.plan()
    leader.runs = {0: long, 1: long}
    leader.beat()
    assert leader.registry.tied == {long: {(NODE, 0): None, (NODE, 1): None}}
    leader.runs = {1: long}
    leader.beat()
    assert leader.registry.tied == {long: {(NODE, 1): None}}
    assert leader.registry.bye(NODE, "s")
    assert leader.registry.tied == {}


def test_slots_of_a_node_that_have_changed_places_are_left_so() -> None:
    leader = Leader(3)
    call, others = leader.job("call", 1), leader.job("others", 100)
    before = leader.plan()
    [slot] = [slot for slot, job_id in before.items() if job_id == call]
    sent = dict(leader.agents.told[NODE])
    there = (slot + 1) % 3
    after = {**before, slot: others, there: call}
    leader.now += 10.0
    leader.beat(after)
    assert leader.registry.entries[NODE].assigned == after
    assert leader.agents.told[NODE] == sent, "nobody was told otherwise"
    assert leader.plan() == after
    leader.now += 10.0
    leader.beat({**after, there: others})
    assert leader.registry.entries[NODE].assigned == after, "that is no exchange: it has missed something"
    leader.now += 10.0
    leader.beat({**after, there: others})
    assert leader.agents.told[NODE][there] == call, "it is told again"
