"""The planner that the leader keeps: whatever happened, it believes what the nodes have, and a planner made anew from
a snapshot would leave everything as it is."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fallow.coordinator.kept_planner import KeptPlanner
from fallow.coordinator.nodes import NodeRegistry
from fallow.core.matching import JobDemand, plan
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, JobKind, JobSpec, Resources
from fallow.model.node import NodeSpec
from fallow.wire.messages import Assign, Beat, SlotState

GIB = 1 << 30


class Agents:
    """Takes what the registry sends, and has what it was told last."""

    def __init__(self) -> None:
        self.told: dict[NodeId, dict[int, JobId | None]] = {}

    def send(self, subject: str, message: Any, reply: str = "") -> None:
        if isinstance(message, Assign):
            node_id = NodeId(subject.rpartition(".")[2])
            self.told.setdefault(node_id, {})[message.slot] = message.spec.job_id if message.spec else None


class Pool:
    """A registry and a kept planner in the hands of chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.agents = Agents()
        self.registry = NodeRegistry(self.agents)  # type: ignore[arg-type]
        self.registry.lead(1)
        self.registry.spec_of = lambda job_id: self.jobs[job_id].spec if job_id in self.jobs else None
        self.kept = KeptPlanner(self.registry)
        self.specs: dict[NodeId, NodeSpec] = {}
        self.jobs: dict[JobId, JobDemand] = {}
        self.now = 100.0
        self.number = 0
        self.terms = 1

    def node_comes(self) -> None:
        self.number += 1
        node_id = NodeId(f"{self.number:016x}")
        slots = self.chance.choice((1, 2, 4))
        memory = self.chance.choice((8, 16)) * GIB
        self.specs[node_id] = NodeSpec(node_id, "n", slots, slots, memory, GIB, "linux", ("3.11",), "0.1")
        self.beat(node_id)

    def beat(self, node_id: NodeId, session: str = "s") -> None:
        spec = self.specs[node_id]
        told = self.agents.told.get(node_id, {})
        slots = tuple(SlotState(slot, told.get(slot)) for slot in range(spec.slots))
        self.number += 1
        self.registry.beat(Beat(node_id, session, self.number, slots, 0, spec=spec), self.now, 0.0)

    def job_arrives(self) -> None:
        self.number += 1
        name = JobId(f"j{self.number}")
        resources = Resources(self.chance.choice((1, 1, 2)), self.chance.choice((0, 12)) * GIB)
        blob = Blob(Digest(""), 0, b"")
        spec = JobSpec(name, name, JobKind.MAP, ClientId("c"), blob, resources=resources)
        self.jobs[name] = JobDemand(spec, self.chance.choice((0, 2, 50)), self.chance.random(), self.number)

    def event(self) -> None:
        chance = self.chance
        self.now += 0.1
        here = [view.spec.node_id for view in self.registry.views()]
        what = chance.randrange(10)
        if what == 0 or len(here) < 8:
            self.node_comes()
        elif what == 1:
            self.registry.bye(chance.choice(here), "s")
        elif what == 2:
            self.registry.drain(chance.choice(here), chance.random() < 0.5)
        elif what == 3 or not self.jobs:
            self.job_arrives()
        elif what == 4:
            ended = chance.choice(list(self.jobs))
            demand = self.jobs.pop(ended)
            self.registry.forget_job(ended)
            if chance.random() < 0.3:
                self.jobs[ended] = demand  # what failed of it is to run once more, before the next plan
        elif what == 5:
            demand = self.jobs[chance.choice(list(self.jobs))]
            demand.want = chance.choice((0, 2, 50))
        elif what == 6:
            demand = self.jobs[chance.choice(list(self.jobs))]
            demand.refused |= {chance.choice(here)}
        elif what == 7:
            self.beat(chance.choice(list(self.specs)))  # one that had gone is here again
        elif what == 8:
            self.now += 4.0
            for node_id in here:
                if chance.random() < 0.8:
                    self.beat(node_id)
            self.now += 3.0
            self.registry.silent(self.now)
        elif chance.random() < 0.2:
            self.terms += 1
            self.registry.lead(self.terms)  # another led meanwhile: everything is learnt anew
            for node_id in here:
                self.beat(node_id)

    def plan(self) -> int:
        moves = self.kept.plan(list(self.jobs.values())).moves
        self.registry.assign(moves, self.now)
        return len(moves)

    def check(self) -> None:
        for _ in range(20):
            if not self.plan():
                break
        else:
            raise AssertionError("plans do not settle")
        assert self.kept.compare()
        assert not self.registry.changed
        views = list(self.registry.views())
        assert not plan(list(self.jobs.values()), views).changes, "a planner made anew would change something"
        for view in views:
            for slot, job_id in view.assigned.items():
                told = self.agents.told.get(view.spec.node_id, {}).get(slot)
                assert told == job_id or job_id is None, "the agent was not told"
                assert job_id is None or not view.open or view.spec.node_id not in self.jobs[job_id].refused


@pytest.mark.parametrize("seed", range(25))
def test_it_has_what_a_planner_made_anew_would_leave_as_it_is(seed: int) -> None:
    pool = Pool(seed)
    for _ in range(60):
        for _ in range(pool.chance.choice((1, 1, 3))):
            pool.event()
        pool.check()


def test_where_it_differs_from_the_nodes_it_is_made_anew() -> None:
    pool = Pool(1)
    pool.node_comes()
    pool.job_arrives()
    (demand,) = pool.jobs.values()
    demand.want = 50
    demand.spec = JobSpec(demand.spec.job_id, "j", JobKind.MAP, ClientId("c"), Blob(Digest(""), 0, b""))
    assert pool.plan()
    (entry,) = pool.registry.entries.values()
    entry.assigned[0] = None  # behind its back
    assert not pool.kept.compare()
    assert pool.plan() == 1
    assert entry.assigned[0] == demand.spec.job_id
    assert pool.kept.compare()
