"""Serves the pool's subjects: routes every message to the job, the node or the store that it concerns."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fallow.coordinator.calls_job import CallsJob
from fallow.coordinator.context import Context
from fallow.coordinator.directory import Directory
from fallow.coordinator.job_logs import JobLogs
from fallow.coordinator.map_job import CLIENT_SILENT_S, MapJob
from fallow.coordinator.matcher import Matcher
from fallow.coordinator.submission import Submission
from fallow.model.ids import JobId, NodeId
from fallow.model.node import NodeSpec
from fallow.store.protocol import PutNode
from fallow.wire import subjects
from fallow.wire.messages import (
    AppendCalls,
    AppendInputs,
    AssignRefused,
    Beat,
    Bye,
    CancelCalls,
    CancelJob,
    Done,
    FetchResults,
    FindJob,
    GetJob,
    GetLogs,
    GetPool,
    HandIn,
    JobStatus,
    ListJobs,
    ListNodes,
    Msg,
    NodeControl,
    NodeLog,
    Nodes,
    Ping,
    PoolInfo,
    Pull,
    Refused,
    RetryFailed,
    Revoke,
    SignBlobs,
    SignedBlobs,
    SubmitJob,
    SyncCalls,
    Unpull,
)

log = logging.getLogger(__name__)

TICK_S = 0.25
SETUP_REFUSALS_LIMIT = 3
"""Nodes on which a job's set-up may fail before the job is failed, where a refusal is not fatal by itself."""


class Service:
    """One coordinator's doors. Everything runs on its event loop."""

    def __init__(
        self,
        context: Context,
        pool_info: Callable[[], PoolInfo],
        sign: Callable[[str, str, int], str | None],
    ) -> None:
        self.context = context
        self._pool_info = pool_info
        self._sign = sign
        self.directory = Directory(context)
        self.logs = JobLogs(context)
        self.matcher = Matcher(context, self.directory)
        self.submission = Submission(context, self.directory, self._subscribe_job)
        self.directory.on_loaded = self._subscribe_job
        context.kick_matcher = self.matcher.kick
        context.nodes.spec_of = self.directory.spec_of
        self._subscriptions: dict[JobId, Any] = {}
        self._waiting_refusals: deque[str] = deque(maxlen=100)

    async def start(self) -> None:
        """Take up the jobs that the store says are not over, then open the doors."""
        for job_id in await self.directory.load_active():
            await self._subscribe_job(job_id)
        connection = self.context.connection
        await connection.subscribe(subjects.BEAT, self._on_agent)
        await connection.subscribe(subjects.LOGS_ALL, self._on_log)
        await connection.subscribe(subjects.POOL, self._on_pool, queue=subjects.COORDINATORS)

    async def _subscribe_job(self, job_id: JobId) -> None:
        if job_id not in self._subscriptions:
            self._subscriptions[job_id] = await self.context.connection.subscribe(
                subjects.job(job_id), lambda message, reply: self._on_job(job_id, message, reply)
            )

    # ------------------------------------------------------------ agents

    def _on_agent(self, message: Msg, reply: str) -> None:
        match message:
            case Beat():
                self._on_beat(message)
            case Bye():
                if self.context.nodes.bye(message.node_id, message.session, self.context.now()):
                    self._lose_node(message.node_id, "it left the pool")
            case _:
                pass

    def _on_beat(self, beat: Beat) -> None:
        nodes = self.context.nodes
        known = nodes.entries.get(beat.node_id)
        restarted = known is not None and known.session != beat.session and beat.spec is not None
        if restarted:
            self._lose_node(beat.node_id, "its agent started anew")
        entry, changed = nodes.beat(beat, self.context.now(), self.context.unix_s())
        if entry is None:
            return
        held: dict[JobId, list[Any]] = {}
        for lease in beat.leases:
            held.setdefault(lease.job_id, []).append(lease)
        for job_id, owned in self.directory.active.items():
            leases = held.pop(job_id, [])
            if leases or beat.node_id in owned.nodes_seen:
                owned.on_beat(beat.node_id, leases)
        for job_id in held:
            self.context.connection.send(
                subjects.node(beat.node_id), Revoke(job_id, self.directory.last_epoch(job_id), (), "no such job")
            )
        if changed:
            spec: NodeSpec = entry.spec
            self.context.journal.append([PutNode(spec, self.context.unix_s(), str(entry.state))])
            self.matcher.kick()

    def _lose_node(self, node_id: NodeId, reason: str) -> None:
        name = self.context.nodes.name(node_id)
        for owned in list(self.directory.active.values()):
            owned.on_node_lost(node_id, f"{name}: {reason}")
        self.matcher.kick()

    def _on_log(self, message: Msg, reply: str) -> None:
        if isinstance(message, NodeLog):
            self.logs.keep(message)

    # ------------------------------------------------------------ jobs

    def _on_job(self, job_id: JobId, message: Msg, reply: str) -> None:
        owned = self.directory.active.get(job_id)
        if owned is None:
            self._on_ended_job(job_id, message, reply)
            return
        match message:
            case HandIn():
                owned.on_hand_in(message)
            case Pull():
                owned.on_pull(message)
            case Unpull():
                owned.progress.unpull((message.node_id, message.slot), message.seq)
            case AssignRefused():
                self._on_refused(job_id, message)
            case Ping():
                owned.client_seen = self.context.now()
            case GetLogs():
                self.logs.read(message, reply)
            case GetJob():
                self._reply(reply, JobStatus(owned.epoch, owned.info()))
            case CancelJob() if isinstance(owned, CallsJob):
                owned.perform(owned.progress.cancel(message.reason or "cancelled"))
                self._reply(reply, Done(owned.epoch))
            case AppendCalls() if isinstance(owned, CallsJob):
                owned.append(message)
            case SyncCalls() if isinstance(owned, CallsJob):
                owned.sync(message)
            case CancelCalls() if isinstance(owned, CallsJob):
                owned.cancel_calls(message)
            case AppendInputs() if isinstance(owned, MapJob):
                owned.append(message, reply)
            case FetchResults() if isinstance(owned, MapJob):
                owned.fetch(message, reply)
            case CancelJob() if isinstance(owned, MapJob):
                owned.cancel(message, reply)
            case RetryFailed() if isinstance(owned, MapJob):
                owned.retry_failed(message, reply)
            case _:
                text = f"{type(message).__name__} is not for a job of kind {owned.spec.kind}"
                self._reply(reply, Refused("invalid", text, owned.epoch))

    def _on_ended_job(self, job_id: JobId, message: Msg, reply: str) -> None:
        """The job is not in memory: it ended here, and its row (and a detached job's results) are in the store."""
        epoch = self.directory.last_epoch(job_id)
        match message:
            case HandIn() | Pull():
                self.context.connection.send(
                    subjects.node(message.node_id), Revoke(job_id, epoch, (), "the job has ended")
                )
            case FetchResults() | GetJob() | RetryFailed() | GetLogs() | CancelJob():
                self.directory.revive(job_id, lambda: self._on_job_or_refuse(job_id, message, reply))
            case _:
                self._reply(reply, Refused("ended", f"job {job_id} has ended", epoch))

    def _on_job_or_refuse(self, job_id: JobId, message: Msg, reply: str) -> None:
        if job_id in self.directory.active:
            self._on_job(job_id, message, reply)
        else:
            self._reply(reply, Refused("not_found", f"there is no job {job_id}", 0))

    def _on_refused(self, job_id: JobId, message: AssignRefused) -> None:
        owned = self.directory.active[job_id]
        name = self.context.nodes.name(message.node_id)
        owned.refused[message.node_id] = message.message
        log.info("node %s cannot run %s: %s", name, job_id, message.message)
        entry = self.context.nodes.entries.get(message.node_id)
        if entry is not None:
            for slot, assigned in list(entry.assigned.items()):
                if assigned == job_id:
                    self.context.nodes.assign([((message.node_id, slot), None)], self.context.now())
        if message.fatal:
            owned.perform(owned.progress.fail(message.message, message.kind))
        else:
            self.matcher.kick()

    # ------------------------------------------------------------ the pool

    def _on_pool(self, message: Msg, reply: str) -> None:
        match message:
            case GetPool():
                self._reply(reply, self._pool_info())
            case SubmitJob():
                self.submission.submit(message, reply)
            case ListJobs():
                self.directory.list_jobs(message, lambda answer: self._reply(reply, answer))
            case ListNodes():
                self._reply(reply, Nodes(self.context.nodes.infos(self.context.now())))
            case FindJob():
                self.directory.find(message.text, lambda answer: self._reply(reply, answer))
            case SignBlobs():
                self._sign_blobs(message, reply)
            case NodeControl():
                self._control_node(message, reply)
            case _:
                self._reply(reply, Refused("invalid", f"{type(message).__name__} is not for {subjects.POOL}"))

    def _sign_blobs(self, message: SignBlobs, reply: str) -> None:
        urls = [self._sign(message.method, digest, size) for digest, size in message.blobs[:10_000]]
        if any(url is None for url in urls):
            self._reply(reply, Refused("overloaded", "the blob server is still starting", retry_after_s=0.2))
        else:
            self._reply(reply, SignedBlobs(tuple(url for url in urls if url is not None)))

    def _control_node(self, message: NodeControl, reply: str) -> None:
        if message.order not in ("drain", "resume"):
            self._reply(reply, Refused("invalid", f"{message.order!r} is no order for a node: drain or resume"))
        elif self.context.nodes.drain(message.node_id, message.order == "drain"):
            self.matcher.kick()
            self._reply(reply, Done())
        else:
            self._reply(reply, Refused("not_found", f"there is no node {message.node_id}"))

    def _reply(self, reply: str, message: Msg) -> None:
        if reply:
            self.context.connection.send(reply, message)

    # ------------------------------------------------------------ time

    def tick(self) -> None:
        """Every TICK_S: silences, deadlines, and what is to be forgotten."""
        now = self.context.now()
        for entry in self.context.nodes.silent(now):
            self.context.journal.append([PutNode(entry.spec, self.context.unix_s(), str(entry.state))])
            self._lose_node(entry.spec.node_id, entry.reason)
        for job_id, owned in list(self.directory.active.items()):
            if isinstance(owned, MapJob | CallsJob):
                owned.tick(now)
            if owned.progress.is_final:
                if owned.known_state.is_final and self.directory.may_forget(owned, now):
                    self._forget(job_id)
                continue
            if owned.progress.pulls and (owned.progress.todo or owned.progress.failures.delayed):
                owned.dispatch()
            if not owned.spec.detached and now - owned.client_seen > CLIENT_SILENT_S:
                reason = f"its client was silent for {CLIENT_SILENT_S:g} s"
                owned.perform(owned.progress.cancel(reason, "client_silent"))
        self.logs.flush()
        self.matcher.tick(now)

    def _forget(self, job_id: JobId) -> None:
        owned = self.directory.forget(job_id)
        if isinstance(owned, MapJob) and not owned.spec.detached:
            owned.forget_pages()
        self.logs.forget(job_id)
        if owned is not None and not owned.spec.detached and job_id in self._subscriptions:
            subscription = self._subscriptions.pop(job_id)
            self.context.loop.create_task(self.context.connection.unsubscribe(subscription))

    def lost_ownership(self, job_ids: Sequence[JobId]) -> None:
        """Another coordinator owns these: drop all memory of them."""
        for job_id in job_ids:
            log.warning("another coordinator took over %s", job_id)
            self.directory.forget(job_id)
