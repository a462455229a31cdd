"""Requests of tasks that use the SDK themselves: relayed over the agent's connection, never a second pool.

A task may speak to coordinators only (subjects fw.pool and fw.job.*); what is pushed to its client is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import replace

from fallow.model.ids import ClientId, JobId, is_id, new_id
from fallow.wire import subjects
from fallow.wire.messages import (
    AppendCalls,
    AppendInputs,
    CancelCalls,
    CancelJob,
    FetchResults,
    GetJob,
    GetLogs,
    GetPool,
    Ping,
    RetryFailed,
    SubmitJob,
    Submitted,
    SyncCalls,
    decode,
    encode,
)
from fallow.wire.repeats import again_s

if TYPE_CHECKING:
    from fallow.agent.limits.bandwidth import Throttle
    from fallow.wire.connection import Connection

log = logging.getLogger("fallow.agent")

REQUESTS_LIMIT = 256
"""Requests of one worker that may be under way at once; further ones are answered as if nobody did."""
REQUEST_TIMEOUT_MAX_S = 60.0
JOBS_LIMIT = 256
"""Nested jobs of one worker that are cancelled with it; the oldest have ended, or end when they miss their client."""
CLIENTS_LIMIT = 64
"""Clients of one worker whose messages are passed on; the oldest goes when there are more."""

Answer = Callable[[bytes], None]

KNOWN_JOBS_LIMIT = 1024
"""Jobs that one sandboxed worker has submitted and may still speak of."""
OF_OWN_JOBS = (
    AppendInputs,
    FetchResults,
    GetJob,
    CancelJob,
    RetryFailed,
    Ping,
    GetLogs,
    AppendCalls,
    SyncCalls,
    CancelCalls,
)

NOBODY = b""
"""The answer to a request that nobody answered in time."""


class Told(Protocol):
    """A worker, as far as the relay knows it."""

    def tell(self, body: bytes) -> None: ...


_request = msgspec.msgpack.Decoder(tuple[str, bytes, float])
_publish = msgspec.msgpack.Decoder(tuple[str, bytes])


def may_relay(subject: str) -> bool:
    """Say whether a task may send there."""
    if subject == subjects.POOL:
        return True
    prefix = subjects.job(JobId(""))
    return subject.startswith(prefix) and is_id(subject.removeprefix(prefix))


class WorkerRelay:
    """The relay of one worker. Close it with the worker."""

    def __init__(
        self,
        connection: Callable[[], Connection | None],
        worker: Callable[[], Told | None],
        confined: bool = False,
        pace: Callable[[], Throttle | None] = lambda: None,
    ) -> None:
        self._pace = pace
        """What the machine's owner lends of the way to the pool."""
        self._confined = confined
        """It may speak of jobs alone that it has submitted itself, and for clients that were made for it."""
        self._known: OrderedDict[JobId, None] = OrderedDict()
        self._connection = connection
        self._worker = worker
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[ClientId, Any] = {}
        self._jobs: dict[JobId, None] = {}
        """Attached jobs that were submitted through here."""
        self._closed = False
        self.account = ""
        """Whom the worker's job is for: what its tasks submit is for the same."""

    def request(self, body: bytes, answer: Answer) -> None:
        """Relay msgpack [subject, bytes, timeout_s]; the answer is the reply, or NOBODY."""
        subject, data, timeout_s = _request.decode(body)
        allowed = may_relay(subject) and (not self._confined or self._may_say(subject, data))
        if not allowed or len(self._tasks) >= REQUESTS_LIMIT:
            log.warning("a task's request to %s was not relayed", subject)
            answer(NOBODY)
            return
        self._start(self._request(subject, data, max(0.0, min(timeout_s, REQUEST_TIMEOUT_MAX_S)), answer))

    def publish(self, body: bytes) -> None:
        """Relay msgpack [subject, bytes]."""
        subject, data = _publish.decode(body)
        connection = self._connection()
        if connection is None or not may_relay(subject) or (self._confined and not self._may_say(subject, data)):
            log.warning("a task's message to %s was not relayed", subject)
            return
        message = decode(data)
        if self._confined and isinstance(message, SubmitJob):
            log.warning("a task submitted a job without waiting for the answer: it was not relayed")
            return
        if pace := self._pace():
            pace.spend_up(len(data))
        connection.send(subject, message)

    def _may_say(self, subject: str, data: bytes) -> bool:
        """Whether a stranger's task may send this. Raises msgspec.DecodeError."""
        message = decode(data)
        client_id = getattr(message, "client_id", None)
        if client_id is not None and client_id not in self._clients:
            return False
        if subject == subjects.POOL:
            if isinstance(message, SubmitJob):
                return message.spec.client_id in self._clients
            return isinstance(message, GetPool)
        return JobId(subject.removeprefix(subjects.job(JobId("")))) in self._known and isinstance(message, OF_OWN_JOBS)

    async def new_client(self) -> ClientId:
        """An identifier for a nested client; what is pushed to it is passed on from now on."""
        client_id = ClientId(new_id("client", os.urandom))
        await self.follow(client_id)
        return client_id

    async def follow(self, client_id: ClientId) -> None:
        """Pass on what is pushed to this client from now on."""
        connection = self._connection()
        if self._closed or connection is None or client_id in self._clients or not is_id(client_id):
            return
        while len(self._clients) >= CLIENTS_LIMIT:
            await self._unfollow(next(iter(self._clients)))
        self._clients[client_id] = None
        subscription = await connection.subscribe(subjects.client(client_id), self._pushed)
        if client_id in self._clients:
            self._clients[client_id] = subscription
        else:
            await connection.unsubscribe(subscription)

    async def _unfollow(self, client_id: ClientId) -> None:
        subscription = self._clients.pop(client_id, None)
        connection = self._connection()
        if connection is not None and subscription is not None:
            await connection.unsubscribe(subscription)

    def _pushed(self, message: Any, _reply: str) -> None:
        worker = self._worker()
        if worker is not None:
            worker.tell(encode(message))

    async def _request(self, subject: str, data: bytes, timeout_s: float, answer: Answer) -> None:
        reply = NOBODY
        connection = self._connection()
        if connection is not None:
            message = decode(data)
            if isinstance(message, SubmitJob):
                if self.account and message.spec.account != self.account:
                    message = replace(message, spec=replace(message.spec, account=self.account))
                    data = encode(message)
                # Answers of its calls will be pushed to the client that submits.
                await self.follow(message.spec.client_id)
                if not self._confined:
                    self._note(message)
            elif isinstance(message, CancelJob):
                self._jobs.pop(message.job_id, None)
            pace = self._pace()
            if pace is not None:
                await pace.sent(len(data))
            try:
                reply = await connection.request_bytes(subject, data, timeout_s, again_s(message))
            except TimeoutError:
                reply = NOBODY
            if pace is not None:
                await pace.received(len(reply))
            # A stranger's task may name anybody's job: the coordinator says whether it is this client's.
            if self._confined and isinstance(message, SubmitJob) and reply:
                answered = decode(reply)
                if isinstance(answered, Submitted) and answered.job_id == message.spec.job_id:
                    self._known[answered.job_id] = None
                    if len(self._known) > KNOWN_JOBS_LIMIT:
                        self._known.popitem(last=False)
                    self._note(message)
        answer(reply)

    def _note(self, message: SubmitJob) -> None:
        """The job is cancelled with the worker, unless it is detached."""
        if not message.spec.detached:
            self._jobs[message.spec.job_id] = None
            if len(self._jobs) > JOBS_LIMIT:
                del self._jobs[next(iter(self._jobs))]

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a task's request could not be relayed: %s", task.exception())

    def close(self) -> None:
        """The worker is gone: nobody is left to read the results of what it asked for, or to cancel it."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        connection = self._connection()
        if connection is not None:
            for job_id in self._jobs:
                connection.send(subjects.job(job_id), CancelJob(job_id, "the worker whose task asked for it is gone"))
        self._jobs.clear()
        for client_id in list(self._clients):
            self._start(self._unfollow(client_id))
