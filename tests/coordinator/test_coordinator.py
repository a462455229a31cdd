"""The coordinator's promises, over the real wire and a real store, with messages lost, repeated and out of order."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fallow.model.ids import ClientId, Digest, new_id
from fallow.model.job import Blob, RetryPolicy
from fallow.model.parts import Death, HeldLease, ResultPage, RetryLater
from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import (
    Appended,
    AppendInputs,
    Assign,
    AssignRefused,
    CancelJob,
    Done,
    FetchResults,
    FindJob,
    GetJob,
    HandIn,
    JobStatus,
    Lease,
    ListJobs,
    ListNodes,
    Refused,
    Results,
    RetryFailed,
    Revoke,
    SubmitJob,
    Submitted,
)

from .parts import CoordinatorProcess, HandAgent, page, spec

pytestmark = pytest.mark.slow
CLIENT = ClientId("client-abcdefgh")


def results(start: int, stop: int, **fields: Any) -> ResultPage:
    return ResultPage(start, stop, start, Blob(Digest("ef" * 32), 3, b"res"), **fields)


async def ask(connection: Connection, subject: str, message: Any) -> Any:
    """Requests may be lost and are asked again, as every client does."""
    for _ in range(10):
        try:
            answer = await connection.request(subject, message, 30.0 if isinstance(message, FetchResults) else 3.0)
        except TimeoutError:
            continue
        if not isinstance(answer, Refused) or answer.kind != "overloaded":
            return answer
        await asyncio.sleep(answer.retry_after_s)  # a starved coordinator takes no new work until it has caught up
    raise AssertionError(f"no answer to {message}")


async def submit(connection: Connection, job: Any, count: int = 0) -> None:
    pages = (page(0, count),) if count else ()
    answer = await ask(connection, subjects.POOL, SubmitJob(job, pages, count if count else -1))
    assert isinstance(answer, Submitted), answer
    assert answer.cursor == count


def hand_in(agent: HandAgent, lease: Lease, *pages: ResultPage, seq: int = 1, **fields: Any) -> None:
    fields.setdefault("ended", True)
    agent.send(
        HandIn(
            lease.job_id,
            agent.node_id,
            lease.slot,
            lease.token,
            seq,
            lease.start,
            lease.stop,
            pages,
            run_s=0.1,
            **fields,
        )
    )


async def run_all(agent: HandAgent, job: Any, count: int) -> None:
    """Work on the job until so many of its tasks are done for good."""
    done = 0
    first = len(agent.handed_in)
    while done < count:
        lease = await agent.lease(job.job_id)
        hand_in(agent, lease, results(lease.start, lease.stop))
        done += lease.stop - lease.start
    await agent.all_durable(agent.handed_in[first:])


async def fetch_all(connection: Connection, job: Any, ordered: bool = True) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    cursor = 0
    while True:
        answer = await ask(connection, subjects.job(job.job_id), FetchResults(job.job_id, cursor, ordered=ordered))
        assert isinstance(answer, Results), answer
        found += [(p.start, p.stop) for p in answer.pages] + [(f.index, f.index + 1) for f in answer.faults]
        cursor = answer.next_cursor
        if answer.exhausted:
            return found


async def test_map_from_submission_to_the_last_result(coordinator: CoordinatorProcess, connection: Connection) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job)
    answer = await ask(connection, subjects.job(job.job_id), AppendInputs(job.job_id, (page(0, 3), page(3, 100))))
    assert isinstance(answer, Appended)
    assert answer.cursor == 100
    again = await ask(connection, subjects.job(job.job_id), AppendInputs(job.job_id, (page(3, 100),), total=100))
    assert again.cursor == 100
    assign = await agent.inbox.take(Assign, lambda a: a.spec is not None)
    assert assign.spec is not None
    assert assign.spec.job_id == job.job_id
    first = await agent.lease(job.job_id)
    assert (first.start, first.stop) == (0, 1)
    assert [p.start for p in first.pages] == [0]
    hand_in(agent, first, results(0, 1))
    hand_in(agent, first, results(0, 1))
    await run_all(agent, job, 99)
    found = await fetch_all(connection, job)
    assert found[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert found[-1][1] == 100
    info = (await ask(connection, subjects.POOL, FindJob(job.job_id))).info
    assert info.state == "succeeded"
    assert info.nodes == {"hand": 100}
    assert (await ask(connection, subjects.POOL, ListJobs())).jobs[0].job_id == job.job_id
    assert (await ask(connection, subjects.POOL, ListNodes())).nodes[0].spec.name == "hand"


async def test_killed_coordinator_resumes_and_adopts_what_runs(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand", slots=2)
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 50)
    lease = await agent.lease(job.job_id)
    hand_in(agent, lease, results(0, 1))
    await agent.acknowledged()
    running = await agent.lease(job.job_id)
    coordinator.kill()
    coordinator.start()
    agent.held = [HeldLease(running.job_id, running.token, 0, running.start, running.stop, running.start, 1.0)]
    agent.beat(agent.spec)
    other = await agent.lease(job.job_id, slot=1)
    assert other.epoch > lease.epoch
    assert other.token > running.token
    assert other.start >= running.stop, "what runs was leased a second time"
    hand_in(agent, running, results(running.start, running.stop))
    await agent.acknowledged(running)
    agent.held = []
    hand_in(agent, other, results(other.start, other.stop))
    left = 50 - 1 - (running.stop - running.start) - (other.stop - other.start)
    await run_all(agent, job, left)
    found = await fetch_all(connection, job)
    assert sum(b - a for a, b in found) == 50


async def test_poison_is_named_after_two_lone_deaths(coordinator: CoordinatorProcess, connection: Connection) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 1)
    for attempt in range(3):
        lease = await agent.lease(job.job_id)
        assert lease.alone == (attempt > 0)
        hand_in(agent, lease, deaths=(Death(0, "worker_lost", "exited with code 3"),))
    answer = await ask(connection, subjects.job(job.job_id), FetchResults(job.job_id, 0))
    assert [(f.index, f.kind, f.message) for f in answer.faults] == [(0, "worker_lost", "exited with code 3")]
    info = (await ask(connection, subjects.POOL, FindJob(job.job_id))).info
    assert (info.state, info.counts.failed) == ("succeeded", 1)
    retried = await ask(connection, subjects.job(job.job_id), RetryFailed(job.job_id))
    assert isinstance(retried, JobStatus)
    assert retried.info.state == "running"
    lease = await agent.lease(job.job_id)
    hand_in(agent, lease, results(0, 1))
    answer = await ask(connection, subjects.job(job.job_id), FetchResults(job.job_id, 0))
    assert len(answer.pages) == 1


async def test_timeouts_count_against_retries(coordinator: CoordinatorProcess, connection: Connection) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT, retry=RetryPolicy(retries=1), timeout_s=1.0)
    await submit(connection, job, 1)
    for attempt in range(2):
        lease = await agent.lease(job.job_id)
        assert lease.attempt == attempt
        hand_in(agent, lease, deaths=(Death(0, "timeout", "ran longer than 1 s"),))
    answer = await ask(connection, subjects.job(job.job_id), FetchResults(job.job_id, 0))
    assert answer.faults[0].kind == "timeout"


async def test_a_task_to_retry_later_comes_back_with_its_attempt(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 1)
    lease = await agent.lease(job.job_id)
    hand_in(agent, lease, retry_later=(RetryLater(0, 2, 0.3),))
    lease = await agent.lease(job.job_id)
    assert (lease.start, lease.attempt) == (0, 2)


async def test_cancelled_job_revokes_and_ends(coordinator: CoordinatorProcess, connection: Connection) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 10)
    lease = await agent.lease(job.job_id)
    waiting = asyncio.create_task(ask(connection, subjects.job(job.job_id), FetchResults(job.job_id, 0, wait_s=25.0)))
    answer = await ask(connection, subjects.job(job.job_id), CancelJob(job.job_id, "enough"))
    assert isinstance(answer, Done)
    revoke = await agent.inbox.take(Revoke)
    assert revoke.job_id == job.job_id
    fetched = await waiting
    assert (fetched.state, fetched.reason, fetched.exhausted) == ("cancelled", "enough", True)
    hand_in(agent, lease, results(0, 1))
    await agent.acknowledged()


async def test_refusal_in_the_resolvers_words_fails_the_job(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 1)
    await agent.inbox.take(Assign, lambda a: a.spec is not None)
    agent.send(AssignRefused(job.job_id, agent.node_id, "no such package: nonesuch", True))
    answer = await ask(connection, subjects.job(job.job_id), FetchResults(job.job_id, 0, wait_s=20.0))
    assert (answer.state, answer.reason_kind) == ("failed", "environment")
    assert "nonesuch" in answer.reason


async def test_results_by_order_of_recording_and_consumption(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand", slots=2)
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 2)
    first = await agent.lease(job.job_id, 0)
    second = await agent.lease(job.job_id, 1)
    hand_in(agent, second, results(1, 2))
    await agent.acknowledged()
    fetch = FetchResults(job.job_id, 0, ordered=False)
    answer = await ask(connection, subjects.job(job.job_id), fetch)
    assert [(p.start, p.stop) for p in answer.pages] == [(1, 2)]
    hand_in(agent, first, results(0, 1))
    fetch = FetchResults(job.job_id, answer.next_cursor, ordered=False, consumed=answer.next_cursor)
    answer = await ask(connection, subjects.job(job.job_id), fetch)
    assert [(p.start, p.stop) for p in answer.pages] == [(0, 1)]


async def test_unknown_and_malformed(coordinator: CoordinatorProcess, connection: Connection) -> None:
    answer = await ask(connection, subjects.POOL, FindJob("nonesuch"))
    assert isinstance(answer, Refused)
    assert answer.kind == "not_found"
    job = spec(CLIENT, timeout_s=-1.0)
    answer = await ask(connection, subjects.POOL, SubmitJob(job))
    assert answer.kind == "invalid"
    connection._client.send(subjects.POOL, os.urandom(100))
    connection._client.send(subjects.BEAT, b"\x00")
    assert isinstance(await ask(connection, subjects.POOL, ListNodes()), object)


async def test_detached_job_is_read_after_a_restart(coordinator: CoordinatorProcess, connection: Connection) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT, detached=True)
    await submit(connection, job, 20)
    await run_all(agent, job, 20)
    assert coordinator.stop() == 0
    coordinator.start()
    answer = await ask(connection, subjects.POOL, FindJob("square"))
    assert answer.info.state == "succeeded"
    found = await fetch_all(connection, job)
    assert sum(b - a for a, b in found) == 20
    assert new_id("job", os.urandom) != job.job_id


def rows(folder: Path, query: str) -> int:
    store = sqlite3.connect(f"file:{folder}/store.sqlite?mode=ro", uri=True)
    try:
        return int(store.execute(query).fetchone()[0])
    finally:
        store.close()


async def test_counts_by_node_and_of_failures_survive_the_owner_though_their_results_are_gone(
    coordinator: CoordinatorProcess, connection: Connection, tmp_path: Path
) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 9)
    done = 0
    while done < 3:
        lease = await agent.lease(job.job_id)
        hand_in(agent, lease, results(lease.start, lease.stop, failed_count=1, failed=(lease.start,)))
        done += lease.stop - lease.start
        failed = len(agent.handed_in)
    await agent.all_durable(agent.handed_in[:failed])
    fetch = FetchResults(job.job_id, done - 1, consumed=done - 1, wait_s=0.0)
    await ask(connection, subjects.job(job.job_id), fetch)
    async with asyncio.timeout(30):
        while rows(tmp_path, "select count(*) from result_pages") == failed:
            await asyncio.sleep(0.02)
    coordinator.kill()
    coordinator.start()
    info = (await ask(connection, subjects.job(job.job_id), GetJob(job.job_id))).info
    assert (sum(info.nodes.values()), info.counts.failed, info.counts.done) == (done, failed, done)
    await run_all(agent, job, 9 - done)
    info = (await ask(connection, subjects.job(job.job_id), GetJob(job.job_id))).info
    assert (info.state, info.nodes, info.counts.failed) == ("succeeded", {"hand": 9}, failed)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of a running process")
async def test_what_a_full_disk_refused_is_not_kept(
    coordinator: CoordinatorProcess, connection: Connection, tmp_path: Path
) -> None:
    import resource

    def files_limit(limit: int) -> None:
        resource.prlimit(coordinator.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    agent = HandAgent(connection, "hand")
    await agent.start()
    early, refused = spec(CLIENT, detached=True), spec(CLIENT, detached=True)
    await submit(connection, early, 2)
    files_limit(4096)
    answer = await ask(connection, subjects.POOL, SubmitJob(refused, (page(0, 2),), 2))
    assert isinstance(answer, Refused), answer
    assert (answer.kind, "full" in answer.message) == ("store_full", True)
    again = await ask(connection, subjects.POOL, SubmitJob(early, (page(0, 2),), 2))
    assert isinstance(again, Submitted), "what is in the store is not refused"
    files_limit(resource.RLIM_INFINITY)
    await run_all(agent, early, 2)
    listed = (await ask(connection, subjects.POOL, ListJobs())).jobs
    assert [info.job_id for info in listed] == [early.job_id]
    assert isinstance(await ask(connection, subjects.POOL, FindJob(refused.job_id)), Refused)
    await submit(connection, refused, 2)
    await run_all(agent, refused, 2)


async def test_a_job_is_not_submitted_again_by_another_client(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    agent = HandAgent(connection, "hand")
    await agent.start()
    job = spec(CLIENT, detached=True)
    theirs = msgspec.structs.replace(job, client_id=ClientId("client-zyxwvuts"))
    await submit(connection, job, 2)
    answer = await ask(connection, subjects.POOL, SubmitJob(theirs))
    assert isinstance(answer, Refused)
    assert "another client" in answer.message
    await submit(connection, job, 2)  # the same client may ask again
    await run_all(agent, job, 2)
    coordinator.kill()
    coordinator.start()
    # It has ended and is not in memory: the store still knows whose it is.
    answer = await ask(connection, subjects.POOL, SubmitJob(theirs))
    assert isinstance(answer, Refused)
    assert "another client" in answer.message
    assert await fetch_all(connection, job) == [(0, 1), (1, 2)]
