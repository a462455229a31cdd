"""Several coordinators on one PostgreSQL: owners die, are stopped and continued, leave and join; nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fallow.model.ids import ClientId
from fallow.model.job import JobSpec
from fallow.store.open import open_store
from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import (
    AppendInputs,
    Assign,
    FetchResults,
    FindJob,
    Handover,
    HeldLease,
    JobStatus,
    Lease,
    ListCoordinators,
    ListJobs,
    ListNodes,
    Nodes,
    OwnerReport,
    Results,
    SubmitJob,
    Submitted,
)
from tests.engines.postgres import Postgres

from .parts import CoordinatorProcess, HandAgent, Inbox, NatsProcess, page, spec
from .test_coordinator import CLIENT, ask, fetch_all, hand_in, results, run_all, submit

pytestmark = pytest.mark.slow


class Coordinators:
    """Started by name; all on one database."""

    def __init__(self, nats: NatsProcess, folder: Path, url: str) -> None:
        self._arguments = (nats.address, folder, url)
        self.url = url
        self.running: dict[str, CoordinatorProcess] = {}

    def start(self, name: str) -> CoordinatorProcess:
        self.running[name] = CoordinatorProcess(*self._arguments, owner=name)
        return self.running[name]


@pytest.fixture
def coordinators(nats: NatsProcess, tmp_path: Path, postgres: Postgres) -> Iterator[Coordinators]:
    made = Coordinators(nats, tmp_path, postgres.url(f"s{os.urandom(6).hex()}"))
    yield made
    for process in made.running.values():
        process.kill()


async def job_of_two(coordinators: Coordinators, connection: Connection) -> Any:
    """Two coordinators, and a job of 40 tasks at one of them."""
    coordinators.start("one")
    coordinators.start("two")
    job = spec(CLIENT)
    await submit(connection, job, 40)
    return job


async def owner_of(connection: Connection, job: Any, besides: str = "") -> str:
    """Who owns the job, by the owners' own reports."""
    inbox = Inbox()
    subscription = await connection.subscribe(subjects.OWNERS, inbox)
    report = await inbox.take(
        OwnerReport,
        lambda m: m.owner != besides and any(j.spec.job_id == job.job_id for j in m.jobs),
    )
    await connection.unsubscribe(subscription)
    return report.owner


async def beating(agent: HandAgent) -> None:
    while True:
        agent.beat(agent.spec)
        await asyncio.sleep(0.5)


@pytest.fixture
async def agent(connection: Connection) -> Any:
    made = HandAgent(connection, "hand", slots=2)
    await made.start()
    beats = asyncio.create_task(beating(made))
    yield made
    beats.cancel()


async def test_killed_owner_is_followed_within_seconds(
    coordinators: Coordinators, connection: Connection, agent: HandAgent
) -> None:
    job = await job_of_two(coordinators, connection)
    assert (await agent.inbox.take(Assign, lambda a: a.spec is not None)).spec is not None
    lease = await agent.lease(job.job_id)
    hand_in(agent, lease, results(0, 1))
    await agent.acknowledged()
    first = await owner_of(connection, job)
    coordinators.running[first].kill()
    second = await owner_of(connection, job, besides=first)
    assert second != first
    again = await agent.lease(job.job_id, slot=1)
    assert again.epoch > lease.epoch
    hand_in(agent, again, results(again.start, again.stop))
    await agent.acknowledged(again)
    await run_all(agent, job, 40 - 1 - (again.stop - again.start))
    assert sum(b - a for a, b in await fetch_all(connection, job)) == 40
    answer = await ask(connection, subjects.POOL, FindJob(job.job_id))
    assert isinstance(answer, JobStatus)
    assert answer.info.state == "succeeded"


async def test_time_lost_to_owners_is_counted_on_after_a_take_over(
    coordinators: Coordinators, connection: Connection, agent: HandAgent
) -> None:
    job = await job_of_two(coordinators, connection)
    lease = await agent.lease(job.job_id)
    hand_in(agent, lease, give_back=((lease.start, lease.stop),), wasted_s=3.5)
    await agent.acknowledged(lease)
    first = await owner_of(connection, job)
    coordinators.running[first].kill()
    await owner_of(connection, job, besides=first)
    lease = await agent.lease(job.job_id)
    hand_in(agent, lease, give_back=((lease.start, lease.stop),), wasted_s=1.0)
    await agent.acknowledged(lease)
    answer = await ask(connection, subjects.POOL, FindJob(job.job_id))
    assert isinstance(answer, JobStatus)
    assert answer.info.counts.wasted_s == 4.5


async def test_an_owner_stopped_past_its_session_counts_for_nothing(
    coordinators: Coordinators, connection: Connection, agent: HandAgent
) -> None:
    job = await job_of_two(coordinators, connection)
    lease = await agent.lease(job.job_id)
    first = await owner_of(connection, job)
    stale = coordinators.running[first].process
    os.kill(stale.pid, signal.SIGSTOP)
    try:
        assert await owner_of(connection, job, besides=first) != first
        hand_in(agent, lease, results(0, 1))
        ack = await agent.acknowledged()
        assert ack.epoch > lease.epoch
        agent.inbox.messages.clear()
    finally:
        os.kill(stale.pid, signal.SIGCONT)
    replies = []
    for _ in range(20):
        answer = await ask(connection, subjects.job(job.job_id), FetchResults(job.job_id, 0, wait_s=0.0))
        replies.append(answer)
        await agent.lease(job.job_id, slot=1) if not agent.inbox.messages else None
        await asyncio.sleep(0.05)
    assert all(isinstance(reply, Results) and reply.epoch > lease.epoch for reply in replies)
    told = [m for m in agent.inbox.messages if hasattr(m, "epoch") and getattr(m, "job_id", "") == job.job_id]
    assert [message for message in told if message.epoch <= lease.epoch] == [], "a stale owner spoke"


async def test_a_coordinator_that_leaves_hands_its_jobs_over(
    coordinators: Coordinators, connection: Connection, agent: HandAgent
) -> None:
    job = await job_of_two(coordinators, connection)
    running = await agent.lease(job.job_id)
    first = await owner_of(connection, job)
    assert coordinators.running[first].stop() == 0
    await owner_of(connection, job, besides=first)
    other = await agent.lease(job.job_id, slot=1)
    assert other.start >= running.stop, "what runs was leased again"
    hand_in(agent, running, results(running.start, running.stop))
    hand_in(agent, other, results(other.start, other.stop))
    await run_all(agent, job, 40 - (running.stop - running.start) - (other.stop - other.start))
    assert sum(b - a for a, b in await fetch_all(connection, job)) == 40


@pytest.mark.parametrize(("epochs_ago", "is_adopted"), [(0, True), (1, False)])
async def test_a_job_handed_to_nobody_goes_to_whoever_hears_of_it(
    coordinators: Coordinators, connection: Connection, agent: HandAgent, epochs_ago: int, is_adopted: bool
) -> None:
    """Of the one that leaves before it has heard of another. Its leases hold, unless others owned the job since."""
    coordinators.start("one")
    job = spec(CLIENT)
    await submit(connection, job, 40)
    running = await agent.lease(job.job_id)
    coordinators.running["one"].kill()
    held = HeldLease(job.job_id, running.token, 0, running.start, running.stop)
    with contextlib.closing(open_store(coordinators.url)) as store:
        store.release_job(job.job_id, running.epoch)
    coordinators.start("two")
    message = Handover(job.job_id, running.epoch - epochs_ago, "", ((agent.node_id, held),))
    connection.send(subjects.OWNERS, message)
    other = await agent.lease(job.job_id, slot=1)
    assert other.epoch == running.epoch + 2
    assert (other.start >= running.stop) is is_adopted
    for lease in (running, other):
        hand_in(agent, lease, results(lease.start, lease.stop))
    done = {index for lease in (running, other) for index in range(lease.start, lease.stop)}
    await run_all(agent, job, 40 - len(done))
    assert sum(b - a for a, b in await fetch_all(connection, job)) == 40


async def test_jobs_spread_when_a_coordinator_joins(
    coordinators: Coordinators, connection: Connection, agent: HandAgent
) -> None:
    coordinators.start("one")
    jobs = [spec(ClientId("client-abcdefgh")) for _ in range(4)]
    for job in jobs:
        await submit(connection, job, 2)
    coordinators.start("two")
    inbox = Inbox()
    await connection.subscribe(subjects.OWNERS, inbox)
    await inbox.take(OwnerReport, lambda m: m.owner == "two" and len(m.jobs) == 2)
    await inbox.take(OwnerReport, lambda m: m.owner == "one" and len(m.jobs) == 2)
    listed = (await ask(connection, subjects.POOL, ListJobs(active_only=True))).jobs
    assert {info.job_id for info in listed} == {job.job_id for job in jobs}
    for job in jobs:
        await run_all(agent, job, 2)
        assert sum(b - a for a, b in await fetch_all(connection, job)) == 2


async def test_a_job_sent_to_two_coordinators_at_once_has_one_owner(
    coordinators: Coordinators, connection: Connection, agent: HandAgent
) -> None:
    coordinators.start("one")
    coordinators.start("two")
    everything = Inbox()
    await connection.subscribe(subjects.node(agent.node_id), everything)
    answers = Inbox()
    await connection.subscribe("test.answers", answers)
    for _ in range(4):  # one after another: each is alone, so that none is handed over
        job = spec(CLIENT)

        def send(job: JobSpec = job) -> None:
            connection.send(subjects.POOL, SubmitJob(job, (page(0, 4),), 4), "test.answers")

        for _ in range(8):  # each goes to either coordinator, whichever the bus picks
            send()
        answer = await answers.take(Submitted, lambda m, job=job: m.job_id == job.job_id, again=send)  # type: ignore[misc]
        assert (answer.epoch, answer.cursor) == (1, 4)
        await run_all(agent, job, 4)
        assert sum(b - a for a, b in await fetch_all(connection, job)) == 4
        given = [m for m in everything.messages if isinstance(m, Lease) and m.job_id == job.job_id]
        tasks = [index for lease in given for index in range(lease.start, lease.stop)]
        assert sorted(tasks) == [0, 1, 2, 3], "only the one whose commit came first leases anything"


async def test_a_submission_that_comes_when_its_job_is_over_begins_nothing(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    hand = HandAgent(connection, "hand")
    await hand.start()
    job = spec(CLIENT, detached=True)
    first = SubmitJob(job, (page(0, 4),))
    await ask(connection, subjects.POOL, first)
    await ask(connection, subjects.job(job.job_id), AppendInputs(job.job_id, (), total=4))
    await run_all(hand, job, 4)
    await fetch_all(connection, job)
    coordinator.kill()
    coordinator.start()
    late = await ask(connection, subjects.POOL, first)
    assert isinstance(late, Submitted)
    assert late.cursor == 4
    answer = await ask(connection, subjects.POOL, FindJob(job.job_id))
    assert isinstance(answer, JobStatus)
    assert answer.info.state == "succeeded"
    assert (await ask(connection, subjects.POOL, ListJobs(active_only=True))).jobs == ()


async def test_another_leads_when_the_leader_dies(
    coordinators: Coordinators, connection: Connection, agent: HandAgent
) -> None:
    one = coordinators.start("one")
    coordinators.start("two")
    job = spec(CLIENT)
    await submit(connection, job, 2)
    await agent.inbox.take(Assign, lambda a: a.spec is not None)
    one.kill()
    async with asyncio.timeout(40):
        while True:
            try:
                answer = await connection.request(subjects.POOL, ListNodes(), 1.0)
            except TimeoutError:
                continue
            if isinstance(answer, Nodes) and any(node.spec.name == "hand" for node in answer.nodes):
                break
    await submit(connection, spec(CLIENT), 2)
    await run_all(agent, job, 2)


async def test_questions_that_go_to_a_stopped_coordinator_are_taken_by_another_too(
    coordinators: Coordinators, connection: Connection
) -> None:
    """Its connection stands, so the message server hands it every second question until it gives it up, which takes
    half a minute."""
    stopped = coordinators.start("one").process
    coordinators.start("two")

    async def known(count: int) -> None:
        """To the second one, which names itself first."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(TimeoutError):
                    answer = await connection.request(subjects.POOL, ListCoordinators(), 1.0)
                    owners = [info.owner for info in answer.coordinators]
                    if len(owners) == count and owners[0].startswith("two"):
                        return
                await asyncio.sleep(0.05)

    await known(2)
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        await known(1)
        await known(1)  # what it does about that follows its first answer
        answered: Counter[str] = Counter()

        async def all_answered(asked: list[str]) -> bool:
            for subject in asked:
                await connection.subscribe(subject, lambda _, __, subject=subject: answered.update([subject]))  # type: ignore[misc]
                connection.send(subjects.POOL, ListCoordinators(), subject)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3.0):
                    while not set(answered) >= set(asked):
                        await asyncio.sleep(0.01)
            return set(answered) >= set(asked)

        for attempt in range(10):  # one that is starved past its session says nothing for a while
            if await all_answered([f"answer.{attempt}.{number}" for number in range(12)]):
                break
        else:
            raise AssertionError(f"questions were lost every time: {sorted(answered)}")
        assert set(answered.values()) == {1}, "some were answered twice"
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
