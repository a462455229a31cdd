"""Slots between jobs: whatever comes in which order, a script's single call has one before its map has its second."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fallow.core.call_hold import KEPT_S
from fallow.core.demand import served_in_turn
from fallow.core.effects import Grant
from fallow.core.job import JobProgress
from fallow.core.matching import JobDemand
from fallow.model.ids import ClientId, Digest, JobId
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import AppendCalls, Assign, ListNodes, Nodes, SubmitJob, Submitted

from .parts import DEADLINE_S, CoordinatorProcess, HandAgent, page, spec
from .test_coordinator import CLIENT, ask, hand_in, results, submit
from .test_tied_slots import NODE, Leader

CALLS, MAP, OLD_CALLS, OLD_MAP = (JobId(name) for name in ("calls", "map", "old-calls", "old-map"))
EVENTS = ("calls", "map", "call", "end old-calls", "end old-map", "beat", "plan", "begin 0", "begin 1")


def job(job_id: JobId) -> JobProgress:
    kind = JobKind.CALLS if job_id in (CALLS, OLD_CALLS) else JobKind.MAP
    return JobProgress(JobSpec(job_id, job_id, kind, ClientId("c"), Blob(Digest(""), 0, b"")), 1)


class Pool:
    """Two slots, and jobs whose every task runs to the end of the test."""

    def __init__(self, has_old: bool) -> None:
        self.leader = Leader(2)
        self.jobs: dict[JobId, JobProgress] = {}
        self.running: dict[int, JobId] = {}
        self.happened: set[str] = set()
        self.seq = 0
        if has_old:
            for old, count in ((OLD_CALLS, 1), (OLD_MAP, 10)):
                self.jobs[old] = job(old)
                self.jobs[old].add_inputs(0, count)
            self.do("plan")
            self.do("begin 0")
            self.do("begin 1")
            self.do("beat")
        else:
            self.happened |= {"end old-calls", "end old-map"}

    def do(self, event: str) -> None:
        """Let it happen, if it may now."""
        if event in self.happened or (event in ("map", "call") and "calls" not in self.happened):
            return
        match event.split():
            case ["calls"]:
                self.jobs[CALLS] = job(CALLS)
                self.jobs[CALLS].expects_call = True
                self.happened.add(event)
            case ["map"]:
                self.jobs[MAP] = job(MAP)
                self.jobs[MAP].add_inputs(0, 10)
                self.happened.add(event)
            case ["call"]:
                self.jobs[CALLS].add_call(0, 1)
                self.happened.add(event)
            case ["end", old]:
                del self.jobs[JobId(old)]
                self.leader.registry.forget_job(JobId(old))
                self.happened.add(event)
            case ["beat"]:
                self.running = {slot: job_id for slot, job_id in self.running.items() if job_id in self.jobs}
                self.leader.runs = dict(self.running)
                self.leader.beat()
            case ["begin", slot]:
                self._begin(int(slot))
            case _:
                self._plan()

    def _plan(self) -> None:
        found = {}
        for job_id, progress in self.jobs.items():
            turn = served_in_turn(progress.spec.kind, 0.0 if progress.waits else -1.0, 1.0 * progress.busy_slots)
            found[job_id] = JobDemand(progress.spec, progress.demand, turn, len(found))
        self.leader.jobs = found
        self.leader.plan()

    def _begin(self, slot: int) -> None:
        """The slot asks for a lease of its job, and has it at once if there is one."""
        job_id = self.leader.registry.entries[NODE].assigned.get(slot)
        if job_id is None or (slot in self.running and self.running[slot] in self.jobs):
            return
        self.seq += 1
        progress = self.jobs[job_id]
        progress.pull((NODE, slot), self.seq, True, ())
        if any(isinstance(effect, Grant) for effect in progress.dispatch(self.leader.now)):
            self.running[slot] = job_id


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(st.sampled_from(EVENTS), max_size=25))
def test_in_any_order_of_events_a_call_has_a_slot_before_the_map_after_it_has_both(
    has_old: bool, events: list[str]
) -> None:
    """The call is made before the map, so that its job is submitted first; the call itself comes any time later."""
    pool = Pool(has_old)
    for event in [*events, *EVENTS, *EVENTS]:
        pool.do(event)
    assert sorted(pool.running.values()) == [CALLS, MAP]


@pytest.mark.slow
async def test_a_job_of_calls_has_a_slot_before_its_first_call_comes(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    """The map that its script submits next comes with all its tasks, and would take every slot for as long as they
    run."""
    agent = HandAgent(connection, "hand", slots=2)
    await agent.start()
    calls, tasks = spec(CLIENT, JobKind.CALLS), spec(CLIENT)
    await submit(connection, calls)
    submission = SubmitJob(tasks, (page(0, 10),), 10)
    assert isinstance(await ask(connection, subjects.POOL, submission), Submitted)
    given = {(await agent.inbox.take(Assign)).spec.job_id for _ in range(2)}  # type: ignore[union-attr]
    assert given == {calls.job_id, tasks.job_id}
    connection.send(subjects.job(calls.job_id), AppendCalls(calls.job_id, CLIENT, (page(0, 1),)))
    lease = await agent.lease(calls.job_id)
    assert (lease.start, lease.stop) == (0, 1)


@pytest.mark.slow
async def test_a_first_call_that_never_comes_keeps_no_slot(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand", slots=1)
    await agent.start()
    calls, tasks = spec(CLIENT, JobKind.CALLS), spec(CLIENT)

    def is_for(job: JobSpec) -> Callable[[Assign], bool]:
        return lambda message: message.spec is not None and message.spec.job_id == job.job_id

    await submit(connection, calls)
    await submit(connection, tasks, 2)
    await agent.inbox.take(Assign, is_for(calls))
    await agent.inbox.take(Assign, is_for(tasks), again=agent.beat)


@pytest.mark.slow
async def test_a_slot_stays_between_two_calls_whatever_plan_is_made_then(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand", slots=2)
    await agent.start()
    calls, tasks = spec(CLIENT, JobKind.CALLS), spec(CLIENT)
    await submit(connection, calls)
    await submit(connection, tasks, 100)
    each_has_one = {calls.job_id: 1, tasks.job_id: 1}

    async def jobs_of_node() -> dict[str, int]:
        nodes = await ask(connection, subjects.POOL, ListNodes())
        assert isinstance(nodes, Nodes)
        return nodes.nodes[0].jobs

    for index in itertools.count():
        connection.send(subjects.job(calls.job_id), AppendCalls(calls.job_id, CLIENT, (page(index, index + 1),)))
        lease = await agent.lease(calls.job_id)
        async with asyncio.timeout(DEADLINE_S):
            while await jobs_of_node() != each_has_one:
                agent.beat()
        began_s = time.monotonic()
        hand_in(agent, lease, results(index, index + 1))
        agent.spec = msgspec.structs.replace(agent.spec, memory_bytes=agent.spec.memory_bytes + 1)
        agent.beat(agent.spec)  # so that there is a plan, now that nothing of the calls is to run
        seen = [await jobs_of_node() for _ in range(5)]
        if time.monotonic() - began_s < KEPT_S:
            break  # else it may have been given away by now
    assert seen == [each_has_one] * 5
