"""What a task may send through the agent, and what is passed back to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from fallow.agent.relay import NOBODY, WorkerRelay, may_relay
from fallow.model.ids import ClientId, JobId
from fallow.wire import subjects
from fallow.wire.connection import Connection, connect
from fallow.wire.messages import CallResults, CancelJob, GetPool, Ping, Refused, SubmitJob, Submitted, decode, encode
from tests.agent.owner import NatsServer, Owner, spec

CLIENT = ClientId("client-aaaaaa")


class Worker:
    def __init__(self) -> None:
        self.told: list[bytes] = []

    def tell(self, body: bytes) -> None:
        self.told.append(body)


@pytest.fixture
async def connection(nats: NatsServer) -> AsyncIterator[Connection]:
    opened = await connect(nats.address, "relay")
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    ("subject", "fine"),
    [
        ("fw.pool", True),
        ("fw.job.job-aaaaaa", True),
        ("fw.job.>", False),
        ("fw.job.*", False),
        ("fw.job.", False),
        ("fw.job.a.b", False),
        ("fw.beat", False),
        ("fw.node.0123456789abcdef", False),
        ("fw.calls.0123456789abcdef", False),
        ("fw.log.job-aaaaaa", False),
        ("_INBOX.abc", False),
        ("fw.pool\r\nPUB x", False),
    ],
)
def test_only_coordinators_can_be_reached(subject: str, fine: bool) -> None:
    assert may_relay(subject) is fine


async def ask(relay: WorkerRelay, subject: str, data: bytes, timeout_s: float = 10.0) -> bytes:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    relay.request(msgspec.msgpack.encode([subject, data, timeout_s]), answer.set_result)
    return await asyncio.wait_for(answer, 60)


async def test_a_request_is_answered(owner: Owner, connection: Connection) -> None:
    relay = WorkerRelay(lambda: connection, lambda: None)
    assert decode(await ask(relay, subjects.POOL, encode(GetPool()))) == owner.pool
    assert await ask(relay, "fw.node.0123456789abcdef", encode(GetPool())) == NOBODY
    relay.close()


async def test_nobody_there_is_an_answer_too(connection: Connection) -> None:
    relay = WorkerRelay(lambda: connection, lambda: None)
    assert await ask(relay, subjects.POOL, encode(GetPool()), 0.1) == NOBODY
    assert await ask(WorkerRelay(lambda: None, lambda: None), subjects.POOL, encode(GetPool())) == NOBODY
    relay.close()


async def test_messages_go_out(owner: Owner, connection: Connection) -> None:
    heard: list[Any] = []
    await owner.connection.subscribe("fw.job.job-cccccc", lambda message, _: heard.append(message))
    await owner.connection.flush()
    relay = WorkerRelay(lambda: connection, lambda: None)
    ping = Ping(JobId("job-cccccc"), CLIENT)
    relay.publish(msgspec.msgpack.encode(["fw.job.job-cccccc", encode(ping)]))
    relay.publish(msgspec.msgpack.encode(["fw.beat", encode(ping)]))
    await owner.until("the message", lambda: heard)
    assert heard == [ping]
    assert owner.beats == []
    relay.close()


async def test_what_is_pushed_to_a_nested_client_is_passed_on(owner: Owner, connection: Connection) -> None:
    worker = Worker()
    relay = WorkerRelay(lambda: connection, lambda: worker)
    client_id = await relay.new_client()
    message = CallResults(JobId("job-aaaaaa"), 1, ())
    await connection.flush()
    owner.connection.send(subjects.client(client_id), message)
    await owner.until("the answer", lambda: worker.told)
    assert decode(worker.told[0]) == message
    relay.close()


async def test_a_client_that_submits_a_job_hears_of_it(owner: Owner, connection: Connection) -> None:
    worker = Worker()
    relay = WorkerRelay(lambda: connection, lambda: worker)

    def work(x: int) -> int:
        return x

    await ask(relay, subjects.POOL, encode(SubmitJob(spec(work))), 0.2)
    await connection.flush()
    owner.connection.send(subjects.client(CLIENT), CallResults(JobId("job-aaaaaa"), 1, ()))
    await owner.until("the answer", lambda: worker.told)
    relay.close()


async def test_what_a_worker_asked_for_is_cancelled_with_it(owner: Owner, connection: Connection) -> None:
    def work(x: int) -> int:
        return x

    heard: list[Any] = []
    await owner.connection.subscribe("fw.job.*", lambda message, _: heard.append(message))
    await owner.connection.flush()
    relay = WorkerRelay(lambda: connection, lambda: None)
    open_job, cancelled, detached = spec(work), spec(work), spec(work)
    detached = msgspec.structs.replace(detached, detached=True)
    ids = [JobId(f"job-{letter * 6}") for letter in "abc"]
    jobs = [msgspec.structs.replace(job, job_id=i) for job, i in zip((open_job, cancelled, detached), ids, strict=True)]
    for job in jobs:
        await ask(relay, subjects.POOL, encode(SubmitJob(job)), 0.1)
    await ask(relay, subjects.job(ids[1]), encode(CancelJob(ids[1], "enough")), 0.1)
    relay.close()
    await owner.until("the end of what was open", lambda: any(m.job_id == ids[0] for m in heard))
    await connection.flush()
    await owner.connection.flush()
    assert [(m.job_id, type(m)) for m in heard] == [(ids[1], CancelJob), (ids[0], CancelJob)]


async def test_requests_at_once_are_bounded(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fallow.agent.relay.REQUESTS_LIMIT", 3)
    relay = WorkerRelay(lambda: connection, lambda: None)
    answers: list[bytes] = []
    for _ in range(5):
        relay.request(msgspec.msgpack.encode([subjects.POOL, encode(GetPool()), 30.0]), answers.append)
    assert answers == [NOBODY, NOBODY]
    relay.close()


async def test_a_strangers_task_speaks_only_of_jobs_that_were_taken_as_its_own(
    nats: NatsServer, connection: Connection
) -> None:
    taken, foreign = JobId("job-aaaaaa"), JobId("job-bbbbbb")
    pool = await connect(nats.address, "pool")
    heard: list[Any] = []

    def answer(message: Any, reply: str) -> None:
        assert isinstance(message, SubmitJob)
        job_id = message.spec.job_id
        pool.send(reply, Submitted(job_id, 1, 0) if job_id == taken else Refused("invalid", "another's"))

    await pool.subscribe(subjects.POOL, answer)
    await pool.subscribe("fw.job.*", lambda message, _: heard.append(message))
    await pool.flush()
    relay = WorkerRelay(lambda: connection, lambda: None, confined=True)
    client_id = await relay.new_client()

    def work(x: int) -> int:
        return x

    def job(job_id: JobId) -> bytes:
        return encode(SubmitJob(msgspec.structs.replace(spec(work), job_id=job_id, client_id=client_id)))

    def ping(job_id: JobId) -> None:
        relay.publish(msgspec.msgpack.encode([subjects.job(job_id), encode(Ping(job_id, client_id))]))

    ping(taken)
    relay.publish(msgspec.msgpack.encode([subjects.POOL, job(foreign)]))
    assert isinstance(decode(await ask(relay, subjects.POOL, job(foreign))), Refused)
    ping(foreign)
    assert isinstance(decode(await ask(relay, subjects.POOL, job(taken))), Submitted)
    ping(taken)
    relay.close()
    await connection.flush()
    async with asyncio.timeout(30):
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    await pool.flush()
    # A ping of its own job, and its end with the worker; of the other's job nothing at all.
    assert [(type(m), m.job_id) for m in heard] == [(Ping, taken), (CancelJob, taken)]
    await pool.close()
