"""The planner that is told of changes one by one: sound after each, and as fair as a plan made anew."""

from __future__ import annotations

import random

import pytest

from fallow.core.demand import JobDemand, NodeView
from fallow.core.fit import misfit
from fallow.core.planner import Planner
from fallow.core.shares import fair_shares
from fallow.model.ids import ClientId, Digest, JobId, NodeId, SlotKey
from fallow.model.job import Blob, GpuSpec, JobKind, JobSpec, Resources
from fallow.model.node import Device, NodeSpec

GIB = 1 << 30


class Pool:
    """Truth beside the planner: what the nodes were told."""

    def __init__(self, seed: int, *, plain: bool = False) -> None:
        self.chance = random.Random(seed)
        self.plain = plain
        self.planner = Planner()
        self.nodes: dict[NodeId, NodeView] = {}
        self.jobs: dict[JobId, JobDemand] = {}
        self.number = 0

    def new_node(self) -> None:
        self.number += 1
        chance = self.chance
        slots = 2 if self.plain else chance.choice((1, 2, 3, 8))
        memory = 8 * GIB if self.plain else chance.choice((2, 8, 9, 32)) * GIB
        cards = 0 if self.plain or chance.random() < 0.7 else chance.randrange(1, 3)
        devices = (Device("cuda", "card", 8 * GIB),) * cards
        name = f"n{self.number}"
        spec = NodeSpec(NodeId(name), name, slots, slots, memory, 1 << 40, "linux", ("3.11",), "1", devices)
        self.nodes[spec.node_id] = NodeView(spec, {})
        self.planner.put_node(self.nodes[spec.node_id])

    def new_job(self) -> None:
        self.number += 1
        chance = self.chance
        resources = Resources()
        most = 0
        if not self.plain:
            gpu = GpuSpec(1) if chance.random() < 0.2 else GpuSpec()
            resources = Resources(chance.choice((1, 1, 1, 2)), chance.choice((0, 0, 8, 9)) * GIB, gpu)
            most = chance.choice((0, 0, 0, 2))
        name = JobId(f"j{self.number}")
        blob = Blob(Digest(""), 0, b"")
        spec = JobSpec(name, name, JobKind.MAP, ClientId("c"), blob, resources=resources, max_nodes=most)
        refused = frozenset(n for n in self.nodes if not self.plain and chance.random() < 0.05)
        self.jobs[name] = JobDemand(spec, chance.choice((0, 1, 3, 100)), chance.random(), self.number, refused)
        self.planner.put_job(self.jobs[name])

    def event(self) -> None:
        chance = self.chance
        what = chance.randrange(7)
        if what == 0 or len(self.nodes) < 3:
            self.new_node()
        elif what == 1:
            gone = chance.choice(list(self.nodes))
            del self.nodes[gone]
            self.planner.remove_node(gone)
        elif what == 2 or not self.jobs:
            self.new_job()
        elif what == 3:
            ended = chance.choice(list(self.jobs))
            del self.jobs[ended]
            self.planner.remove_job(ended)
        elif what == 4:
            job = self.jobs[chance.choice(list(self.jobs))]
            job.want = chance.choice((0, 1, 3, 100))
            self.planner.put_job(job)
        elif what == 5:
            job = self.jobs[chance.choice(list(self.jobs))]
            job.served += chance.random()
            self.planner.put_job(job)
        else:
            node = self.nodes[chance.choice(list(self.nodes))]
            node.open = not node.open
            self.planner.put_node(node)

    def plan(self) -> int:
        changes = self.planner.plan().changes
        for (node_id, slot), job_id in changes.items():
            view = self.nodes[node_id]
            view.assigned = {**view.assigned, slot: job_id}
        return len(changes)

    def settle(self) -> None:
        for _ in range(20):
            if not self.plan():
                return
        raise AssertionError("plans of one snapshot do not settle")

    def anew(self) -> dict[JobId, int]:
        """Shares of a plan made from nothing."""
        fresh = Planner()
        for job in self.jobs.values():
            fresh.put_job(job)
        for view in self.nodes.values():
            fresh.put_node(NodeView(view.spec, {}, view.open))
        return fresh.plan().shares

    # ------------------------------------------------------------ what must hold

    def groups(self) -> dict[JobId, list[SlotKey]]:
        found: dict[JobId, list[SlotKey]] = {}
        for view in self.nodes.values():
            for slot, job_id in view.assigned.items():
                if job_id is not None and view.open:
                    found.setdefault(job_id, []).append((view.spec.node_id, slot))
        return found

    def check_sound(self) -> None:
        for view in self.nodes.values():
            if not view.open:
                continue
            taken: list[int] = []
            gpus = 0
            for slot, job_id in view.assigned.items():
                if job_id is None:
                    continue
                job = self.jobs[job_id]
                taken += range(slot, slot + job.spec.resources.cpu)
                gpus += job.spec.resources.gpu.count
                assert misfit(job.spec, view.spec) is None
                assert view.spec.node_id not in job.refused
            assert len(taken) == len(set(taken)), "two jobs on one slot"
            assert all(slot < view.spec.slots for slot in taken)
            assert gpus <= len(view.spec.devices)
        for job_id, keys in self.groups().items():
            most = self.jobs[job_id].spec.max_nodes
            assert not most or len({key[0] for key in keys}) <= most

    def check_fair(self) -> None:
        """No job that wants more could have what is idle, or a slot of one that has two more."""
        groups = self.groups()
        for job in self.jobs.values():
            have = len(groups.get(job.spec.job_id, ()))
            if job.want <= have or job.spec.max_nodes or job.spec.resources.cpu > 1 or job.spec.resources.gpu.count:
                continue
            for view in self.nodes.values():
                if not view.open or view.spec.node_id in job.refused or misfit(job.spec, view.spec) is not None:
                    continue
                busy: set[int] = set()
                for slot, job_id in view.assigned.items():
                    if job_id is None:
                        continue
                    busy.update(range(slot, slot + self.jobs[job_id].spec.resources.cpu))
                    if job_id != job.spec.job_id:
                        assert len(groups[job_id]) < have + 2, (
                            f"{job.spec.name} ({have}) envies {job_id} on {view.spec}"
                        )
                assert len(busy) == view.spec.slots, f"{view.spec.name} is idle, and {job.spec.name} wants more"


@pytest.mark.parametrize("seed", range(40))
def test_sound_and_fair_after_every_event(seed: int) -> None:
    pool = Pool(seed)
    for _ in range(60):
        pool.event()
        pool.settle()
        pool.check_sound()
        pool.check_fair()


@pytest.mark.parametrize("seed", range(20))
def test_as_fair_as_a_plan_made_anew(seed: int) -> None:
    """Where any job can run anywhere, how many slots each has does not depend on what happened before, but for what
    jobs that want nothing keep."""
    pool = Pool(seed, plain=True)
    for _ in range(60):
        pool.event()
        pool.settle()
        have = {j: len(keys) for j, keys in pool.groups().items() if pool.jobs[j].want}
        anew = pool.anew()
        for job_id, job in pool.jobs.items():
            assert min(have.get(job_id, 0), job.want) == anew.get(job_id, 0)


@pytest.mark.parametrize("seed", range(12))
def test_many_nodes_at_once_are_as_many_one_by_one(seed: int) -> None:
    """Whatever they come with: jobs that are known or not, groups that overlap, paused slots, nodes known already."""
    pool = Pool(seed)
    for _ in range(80):
        pool.event()
        pool.plan()
    chance = random.Random(seed)
    one_by_one, at_once = Planner(), Planner()
    views = [NodeView(view.spec, dict(view.assigned), view.open) for view in pool.nodes.values()]
    for view in chance.sample(views, len(views) // 3):
        view.assigned = {chance.randrange(9): chance.choice([*pool.jobs, JobId("gone"), None]) for _ in range(3)}
        view.paused = frozenset(range(chance.randrange(view.spec.slots)))
    views += views[:3]
    for planner in (one_by_one, at_once):
        for job in pool.jobs.values():
            planner.put_job(job)
    for view in views:
        one_by_one.put_node(view)
    at_once.put_nodes(views)
    for node_id in pool.nodes:
        assert at_once.assigned(node_id) == one_by_one.assigned(node_id)
    assert at_once.plan() == one_by_one.plan()
    for node_id in pool.nodes:
        assert at_once.assigned(node_id) == one_by_one.assigned(node_id)


def test_what_the_nodes_say_wins_over_what_was_planned() -> None:
    pool = Pool(1, plain=True)
    pool.new_node()
    pool.new_job()
    job = next(iter(pool.jobs.values()))
    job.want = 100
    pool.planner.put_job(job)
    assert pool.plan() == 2
    node = next(iter(pool.nodes.values()))
    node.assigned = {0: None, 1: JobId("ended long ago")}
    pool.planner.put_node(node)
    assert pool.planner.plan().changes == {
        (node.spec.node_id, 0): job.spec.job_id,
        (node.spec.node_id, 1): job.spec.job_id,
    }


def test_little_moves_when_little_changes() -> None:
    pool = Pool(2, plain=True)
    for _ in range(300):
        pool.new_node()
    for _ in range(10):
        pool.new_job()
    for job in pool.jobs.values():
        job.want = 1000
        pool.planner.put_job(job)
    pool.plan()
    pool.new_job()
    arrived = list(pool.jobs.values())[-1]
    arrived.want = 1000
    pool.planner.put_job(arrived)
    assert pool.plan() <= 600 // 11 + 11


def test_shares_are_max_min_fair() -> None:
    assert fair_shares([(100, 1), (100, 1), (1, 1)], 9) == [4, 4, 1]
    assert fair_shares([(1, 1), (1, 1), (1, 1)], 2) == [1, 1, 0]
    assert fair_shares([(10, 2), (10, 1)], 9) == [3, 3]
    assert fair_shares([(0, 1), (5, 1)], 3) == [0, 3]
