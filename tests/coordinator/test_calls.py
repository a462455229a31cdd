"""Single calls, as their owner keeps them, over the real wire and a real store."""

from __future__ import annotations

import pytest

from fallow.model.ids import call_token
from fallow.model.job import JobKind, JobSpec
from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import (
    AppendCalls,
    CallResults,
    CallSlot,
    CallsUnknown,
    CancelJob,
    FindJob,
    GetJob,
    Lease,
    ListJobs,
    SyncCalls,
    Unpull,
)

from .parts import CoordinatorProcess, HandAgent, Inbox, page, spec
from .test_coordinator import CLIENT, ask, hand_in, results, submit

pytestmark = pytest.mark.slow


async def first_call(connection: Connection) -> tuple[HandAgent, Inbox, JobSpec]:
    """(an agent, what its client is told, a standing job with one call)."""
    agent = HandAgent(connection, "hand")
    await agent.start()
    inbox = Inbox()
    await connection.subscribe(subjects.client(CLIENT), inbox)
    job = spec(CLIENT, JobKind.CALLS)
    await submit(connection, job)
    connection.send(subjects.job(job.job_id), AppendCalls(job.job_id, CLIENT, (page(0, 1),)))
    return agent, inbox, job


async def test_calls_are_answered_once_and_survive_the_owner(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent, inbox, job = await first_call(connection)
    subject = subjects.job(job.job_id)
    lease = await agent.lease(job.job_id)
    hand_in(agent, lease, results(0, 1))
    answer = await inbox.take(CallResults)
    assert [(p.start, p.stop) for p in answer.pages] == [(0, 1)]
    connection.send(subject, SyncCalls(job.job_id, CLIENT, ((0, 1),)))
    answer = await inbox.take(CallResults)
    assert [(p.start, p.stop) for p in answer.pages] == [(0, 1)], "a lost answer is pushed again"
    coordinator.kill()
    coordinator.start()
    agent.beat(agent.spec)
    connection.send(subject, SyncCalls(job.job_id, CLIENT, ((1, 3),), ((0, 1),)))
    unknown = await inbox.take(CallsUnknown, lambda m: m.epoch > 1)
    assert unknown.unknown == ((1, 3),)
    connection.send(subject, AppendCalls(job.job_id, CLIENT, (page(1, 3),)))
    connection.send(subject, AppendCalls(job.job_id, CLIENT, (page(1, 3),)))
    seen: list[int] = []
    while len(seen) < 2:
        lease = await agent.lease(job.job_id)
        hand_in(agent, lease, results(lease.start, lease.stop))
        answer = await inbox.take(CallResults)
        seen += [i for p in answer.pages for i in range(p.start, p.stop)]
    assert seen == [1, 2]


async def test_an_answer_that_the_agent_has_told_is_pushed_only_where_its_client_lacks_it(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent, inbox, job = await first_call(connection)
    subject = subjects.job(job.job_id)
    hand_in(agent, await agent.lease(job.job_id), results(0, 1), told=True)
    await agent.acknowledged()
    connection.send(subject, AppendCalls(job.job_id, CLIENT, (page(1, 2),)))
    hand_in(agent, await agent.lease(job.job_id), results(1, 2))
    answer = await inbox.take(CallResults)
    assert [(p.start, p.stop) for p in answer.pages] == [(1, 2)], "the first was told by the agent"
    connection.send(subject, SyncCalls(job.job_id, CLIENT, ((0, 1),)))
    answer = await inbox.take(CallResults)
    assert [(p.start, p.stop) for p in answer.pages] == [(0, 1)]


async def test_a_client_is_told_of_idle_slots_and_sends_them_its_calls_itself(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent, inbox, job = await first_call(connection)
    subject = subjects.job(job.job_id)
    hand_in(agent, await agent.lease(job.job_id), results(0, 1), told=True)
    agent.ask(job.job_id)
    opened = await inbox.take(CallSlot, again=lambda: agent.ask(job.job_id))
    slot = (agent.node_id, 0)
    assert ((opened.node_id, opened.slot), opened.is_open) == (slot, True)
    # The call reaches the slot, whose answer counts; then one that is lost on the way to the slot.
    connection.send(subject, AppendCalls(job.job_id, CLIENT, (page(1, 2),), (), slot))
    lease = Lease(job.job_id, opened.epoch, call_token(opened.epoch, 1), 0, 1 << 60, 1, 2, 1.0, (page(1, 2),))
    hand_in(agent, lease, results(1, 2), told=True)
    await agent.acknowledged(lease)
    connection.send(subject, AppendCalls(job.job_id, CLIENT, (page(2, 3),), (), slot))
    again = await agent.inbox.take(Lease, again=agent.beat)
    assert (again.token, again.start, again.stop) == (call_token(opened.epoch, 2), 2, 3)
    assert [p.page.data for p in again.pages] == [b"page"]
    hand_in(agent, again, results(2, 3), told=True)
    agent.send(Unpull(job.job_id, agent.node_id, 0, agent.seq + 1))
    shut = await inbox.take(CallSlot)
    assert ((shut.node_id, shut.slot), shut.is_open) == (slot, False)
    status = await ask(connection, subject, GetJob(job.job_id))
    assert status.info.counts.done == 3


async def test_a_call_that_a_slot_did_not_take_is_leased_anew_though_its_client_is_heard_later(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent, inbox, job = await first_call(connection)
    hand_in(agent, await agent.lease(job.job_id), results(0, 1), told=True)
    agent.ask(job.job_id)
    opened = await inbox.take(CallSlot, again=lambda: agent.ask(job.job_id))
    token = call_token(opened.epoch, 1)
    lease = Lease(job.job_id, opened.epoch, token, 0, 1 << 60, 1, 2, 1.0, (page(1, 2),))
    hand_in(agent, lease, give_back=((1, 2),))
    await agent.acknowledged(lease)
    append = AppendCalls(job.job_id, CLIENT, (page(1, 2),), (), (agent.node_id, 0))
    connection.send(subjects.job(job.job_id), append)
    agent.ask(job.job_id)
    again = await agent.inbox.take(Lease, again=agent.beat)
    assert (again.start, again.stop) == (1, 2)
    assert again.token != token, "the slot would take it for a repetition"


async def test_calls_whose_client_has_every_answer_end_well(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    ended = []
    for settled in (True, False):
        job = spec(CLIENT, JobKind.CALLS)
        await submit(connection, job)
        connection.send(subjects.job(job.job_id), AppendCalls(job.job_id, CLIENT, (page(0, 2),)))
        await agent.lease(job.job_id)  # the agent has told its client, but not handed in yet
        await ask(connection, subjects.job(job.job_id), CancelJob(job.job_id, "its script ended", settled))
        status = await ask(connection, subjects.job(job.job_id), GetJob(job.job_id))
        while status.info.state == "open":  # until it is in the journal
            status = await ask(connection, subjects.job(job.job_id), GetJob(job.job_id))
        ended.append((status.info.state, status.info.counts.done))
    assert ended == [("succeeded", 2), ("cancelled", 0)]
    coordinator.kill()
    coordinator.start()
    listed = (await ask(connection, subjects.POOL, ListJobs())).jobs
    assert [(info.state, info.counts.done) for info in reversed(listed)] == ended, "an ended job stays ended"
    for info, expected in zip(reversed(listed), ended, strict=True):
        found = (await ask(connection, subjects.POOL, FindJob(info.job_id))).info
        assert (found.state, found.counts.done, found.ended_unix_s > 0) == (*expected, True)
