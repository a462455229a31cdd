"""Serves the pool's subjects: routes every message to the job, the node or the store that it concerns."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fallow.coordinator.calls_job import CallsJob
from fallow.coordinator.client_watch import ClientWatch
from fallow.coordinator.context import Context
from fallow.coordinator.directory import Directory
from fallow.coordinator.hand_in_blobs import without_lost
from fallow.coordinator.job_logs import JobLogs
from fallow.coordinator.map_job import CLIENT_SILENT_S, MapJob
from fallow.coordinator.matcher import Matcher
from fallow.coordinator.ownership import Ownership
from fallow.coordinator.peers import Peers
from fallow.coordinator.roster import Roster
from fallow.coordinator.submission import Submission
from fallow.core.presence import GIVEN_UP_AFTER_S, QUIET_LEAST_S
from fallow.model.ids import JobId
from fallow.model.node import NodeSpec
from fallow.store.protocol import PutNode, StoreError
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
    DrainCoordinator,
    FetchResults,
    FindJob,
    GetJob,
    GetLogs,
    GetPool,
    HandIn,
    Held,
    JobStatus,
    LeaderHere,
    ListCoordinators,
    ListJobs,
    ListNodes,
    Msg,
    NameLeases,
    NodeAnew,
    NodeControl,
    NodeLog,
    Ping,
    Place,
    PoolInfo,
    Pull,
    Refused,
    RetryFailed,
    Revoke,
    SaveCheckpoint,
    SignBlobs,
    SignedBlobs,
    SubmitJob,
    SyncCalls,
    Unpull,
    Verdict,
)

log = logging.getLogger(__name__)

NODES_SPEAK_S = 0.35
"""A new leader's first plan waits for the beats that answer its word: made with one of several nodes it would put all
work there."""
BOTH_DOORS_S = 0.2
"""Who has no answer asks again after twice that at the soonest."""
TAKEN_MOST = 4096
TURN_S = 1.0
REST_TURN_S = 2.5
"""While there is no job, and no other coordinator."""
LATE_S = 0.3
"""A turn may be so much later, if it comes with a message then."""
SOON_S = 0.25
"""Within which a new job's turn comes, and after which one that is overdue is looked at again."""


class Service:
    """One coordinator's doors. Everything runs on its event loop."""

    def __init__(
        self, context: Context, pool_info: Callable[[], PoolInfo], sign: Callable[[str, str, int], str | None]
    ) -> None:
        self.context = context
        self._pool_info = pool_info
        self._sign = sign
        self.directory = Directory(context)
        self.logs = JobLogs(context)
        self.peers = Peers(context)
        self.matcher = Matcher(context, self.directory, self.peers)
        self.ownership = Ownership(context, self.directory, self.peers, self._on_job)
        self.submission = Submission(
            context, self.directory, self.ownership.listen, self.ownership.unlisten, self.peers.jobs
        )
        context.kick_matcher = self.matcher.kick
        context.nodes.spec_of = self.directory.spec_of
        context.nodes.place_elsewhere = self._place_elsewhere
        context.nodes.on_anew = self._tell_node_anew
        context.session.on_leader = self._lead
        self.peers.own_jobs = self.directory.active.values
        self.peers.on_change = self._peers_changed
        self.roster = Roster(context, self.directory, self.peers)
        self.peers.on_drain = self.roster.passed_on
        self.peers.on_silent = self._peer_silent
        self.peers.on_node_anew = self._node_anew
        self._clients = ClientWatch(context)
        self.on_sooner: Callable[[], None] = lambda: None
        """The next turn is nearer than it was."""
        self.ride: Callable[[], None] = lambda: None
        """The loop is awake: a turn that is due may come now."""
        self.directory.on_added = self._turn_soon
        self.logs.on_lines = self._turn_soon
        self._turned_at = context.now()
        self._soon_at = float("inf")
        self._leading: list[Any] = []
        self._door: Any = None
        self._turning = False
        self._side_door: Any = None
        """False while it is being opened."""
        self._side_door_until_s = 0.0
        self._taken_s: dict[str, float] = {}
        """When questions came lately, by their reply subject, while the side door is open."""

    async def start(self) -> None:
        """Take up the jobs that the store says are not over and nobody owns, then open the doors."""
        connection = self.context.connection
        if self.context.session.shared:
            await connection.subscribe(subjects.OWNERS, self._on_peer)
        connection.on_reconnect.append(self._reconnected)
        await self.context.load.start()
        await self.ownership.take_over()
        await connection.subscribe(subjects.LOGS_ALL, self._on_log, queue=subjects.COORDINATORS)
        await self._turn_door()
        if self.context.session.leads:
            await self._open_leaders_doors()
        self.peers.report()

    async def _turn_door(self) -> None:
        """Take part in the pool's questions while the session stands: others answer them meanwhile."""
        self._turning = True
        try:
            if self._door is None:
                self._door = await self.context.connection.subscribe(
                    subjects.POOL, self._on_pool, queue=subjects.COORDINATORS
                )
            else:
                door, self._door = self._door, None
                await self.context.connection.unsubscribe(door)
        finally:
            self._turning = False

    def _peer_silent(self) -> None:
        """It is stopped or cut off, and the message server still hands it its share of the pool's questions: until that
        gives it up they come here as well. One that two coordinators answer harms nobody."""
        self._side_door_until_s = self.context.now() + GIVEN_UP_AFTER_S
        self.context.loop.create_task(self._turn_side_door())

    async def _turn_side_door(self) -> None:
        connection, is_wanted = self.context.connection, self.context.now() < self._side_door_until_s
        if is_wanted and self._side_door is None:
            self._side_door = False
            self._side_door = await connection.subscribe(subjects.POOL, self._on_pool, queue=subjects.SIDE_DOOR)
        elif not is_wanted and self._side_door:
            door, self._side_door = self._side_door, None
            self._taken_s.clear()
            await connection.unsubscribe(door)

    def _came_by_both_doors(self, reply: str) -> bool:
        """The same question, and not because it is asked again."""
        now = self.context.now()
        if len(self._taken_s) >= TAKEN_MOST:
            self._taken_s.clear()
        before_s = self._taken_s.get(reply)
        self._taken_s[reply] = now
        return before_s is not None and now - before_s < BOTH_DOORS_S

    def _reconnected(self) -> None:
        """What was sent to this coordinator meanwhile is lost: agents and clients ask again."""
        for job_id, owned in self.directory.active.items():
            if not owned.progress.is_final:
                for node_id in owned.heard.seen:
                    self.context.say(subjects.node(node_id), NameLeases(job_id, owned.epoch))
                owned.announce()
        self.peers.report()

    def _lead(self) -> None:
        self.context.loop.create_task(self._open_leaders_doors())

    async def _open_leaders_doors(self) -> None:
        """This coordinator leads: agents' beats and requests about nodes come here. (Where another leads again, the
        doors stay open, and what comes through them is left alone.)"""
        session = self.context.session
        self.context.nodes.lead(session.leader_term)
        if not self._leading:
            connection = self.context.connection
            self._leading = [
                await connection.subscribe(subjects.BEAT, self._on_agent),
                await connection.subscribe(subjects.LEADER, self._on_leader_request),
            ]
        if session.shared and session.leader_term > 1:
            self.matcher.hold(NODES_SPEAK_S)
        self.context.connection.send(subjects.NODES, LeaderHere(session.leader_term))
        self.matcher.kick()

    # ------------------------------------------------------------ agents

    def _on_agent(self, message: Msg, reply: str) -> None:
        match message:
            case Beat():
                self._on_beat(message)
                self.ride()
            case Bye():
                if self.context.session.leads and self.context.nodes.bye(message.node_id, message.session):
                    self.matcher.kick()
            case _:
                pass

    def _tell_node_anew(self, message: NodeAnew) -> None:
        self._node_anew(message)
        if self.context.session.shared:
            self.context.connection.send(subjects.OWNERS, message)

    def _node_anew(self, message: NodeAnew) -> None:
        for owned in list(self.directory.active.values()):
            owned.node_anew(message)

    def _on_beat(self, beat: Beat) -> None:
        if not self.context.session.leads:
            return
        entry, changed = self.context.nodes.beat(beat, self.context.now(), self.context.unix_s())
        if entry is not None and changed:
            spec: NodeSpec = entry.spec
            put = PutNode(spec=spec, unix_s=self.context.unix_s(), state=str(entry.state))
            self.context.journal.append([put], may_wait=True)
            self.matcher.kick()

    def _place_elsewhere(self, place: Place) -> bool:
        """Have the owner of a job that is not ours tell the agent."""
        if place.job_id not in self.peers.jobs():
            return False
        self.context.connection.send(subjects.job(place.job_id), place)
        return True

    def _peers_changed(self) -> None:
        if self.context.session.leads:
            self.matcher.kick()

    def _on_peer(self, message: Msg, reply: str) -> None:
        self.peers.receive(message, reply)
        self.ride()

    def _on_log(self, message: Msg, reply: str) -> None:
        if isinstance(message, NodeLog):
            self.logs.keep(message)

    # ------------------------------------------------------------ jobs

    def _on_job(self, job_id: JobId, message: Msg, reply: str) -> None:
        if not self.context.session.valid:
            return  # another may own the job by now: silence is the only right answer
        owned = self.directory.active.get(job_id)
        if owned is None:
            self._on_ended_job(job_id, message, reply)
            return
        match message:
            case AppendCalls() if isinstance(owned, CallsJob):
                owned.append(message)
            case HandIn() | Pull() | Unpull() | Held() | SaveCheckpoint() | Place():
                owned.on_agent(message, reply)
            case Verdict():
                if not owned.progress.busy_slots:
                    owned.perform(owned.progress.fail(message.reason, message.kind))
            case AssignRefused():
                self._on_refused(job_id, message)
            case Ping():
                owned.client_seen = self.context.now()
            case GetLogs():
                self.logs.read(message, reply)
            case GetJob():  # no word of one not yet in the store: another may own it, and this submission came late
                self._reply(reply if owned.is_written else "", JobStatus(owned.epoch, owned.info()))
            case CancelJob() if isinstance(owned, CallsJob):
                owned.end(message.reason or "cancelled", message.settled)
                self._reply(reply, Done(owned.epoch))
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
        if self.ownership.silent(job_id):
            return  # another owns it, or this coordinator is about to
        if isinstance(message, HandIn):
            without_lost(message, self.context.blobs, None, self.context.now())
        match message:
            case HandIn() | Pull() | Held():
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
            self.context.loop.create_task(self._refuse_unknown(job_id, reply))

    async def _refuse_unknown(self, job_id: JobId, reply: str) -> None:
        """Only a job that the store does not hold is no job; one of another owner's is the other's to answer for."""
        context = self.context
        try:
            stored = await context.questions.ask(context.store.get_job, job_id)
        except StoreError as error:
            self._reply(reply, Refused("overloaded", f"the store cannot be read: {error}", retry_after_s=0.5))
            return
        if stored is None:
            self._reply(reply, Refused("not_found", f"there is no job {job_id}", 0))
        elif job_id not in self.directory.active and not self.ownership.passing(job_id):
            self.ownership.unlisten(job_id)

    def _on_refused(self, job_id: JobId, message: AssignRefused) -> None:
        owned = self.directory.active[job_id]
        owned.refused[message.node_id] = message.message
        log.info("node %s cannot run %s: %s", owned.node_name(message.node_id), job_id, message.message)
        if message.fatal:
            owned.perform(owned.progress.fail(message.message, message.kind))
        else:
            self.matcher.kick()

    # ------------------------------------------------------------ the pool

    def _on_pool(self, message: Msg, reply: str) -> None:
        if not self.context.session.valid or (self._side_door and reply and self._came_by_both_doors(reply)):
            return
        match message:
            case GetPool():
                self._reply(reply, self._pool_info())
            case SubmitJob():
                self.submission.submit(message, reply)
            case ListJobs():
                self.directory.list_jobs(message, self.peers.jobs(), lambda answer: self._reply(reply, answer))
            case FindJob():
                self.directory.find(message.text, self.peers.info, lambda answer: self._reply(reply, answer))
            case SignBlobs():
                self._sign_blobs(message, reply)
            case ListCoordinators():
                self._reply(reply, self.roster.list())
            case DrainCoordinator():
                self.roster.drain(message, reply)
            case ListNodes() | NodeControl():
                if self.context.session.leads:
                    self._on_leader_request(message, reply)
                else:
                    self.context.connection.send(subjects.LEADER, message, reply)
            case _:
                self._reply(reply, Refused("invalid", f"{type(message).__name__} is not for {subjects.POOL}"))

    def _on_leader_request(self, message: Msg, reply: str) -> None:
        if self.context.session.leads:
            self.roster.lead(message, reply)

    def _sign_blobs(self, message: SignBlobs, reply: str) -> None:
        try:
            urls = [self._sign(message.method, digest, size) for digest, size in message.blobs[:10_000]]
        except ValueError as error:
            self._reply(reply, Refused("invalid", str(error)))
            return
        if any(url is None for url in urls):
            self._reply(reply, Refused("overloaded", "the blob server is still starting", retry_after_s=0.2))
        else:
            self._reply(reply, SignedBlobs(tuple(url for url in urls if url is not None)))

    def _reply(self, reply: str, message: Msg) -> None:
        if reply:
            self.context.connection.send(reply, message)

    # ------------------------------------------------------------ time

    def _turn_soon(self) -> None:
        if self._soon_at == float("inf"):
            self._soon_at = self.context.now() + SOON_S
            self.on_sooner()

    def next_turn(self) -> tuple[float, float]:
        """When the next turn is due, and when it is to come at the latest."""
        context, session = self.context, self.context.session
        active = self.directory.active.values()
        if session.shared:
            due, latest = session.renew_at, session.renew_by
        else:
            due = self._turned_at + (TURN_S if active else REST_TURN_S)
            latest = due + LATE_S
        exact = [self._soon_at]
        if session.valid:
            exact += [owned.next_s(latest) for owned in active if not owned.progress.is_final]
            if session.leads:
                exact.append(context.nodes.next_s(latest))
        first = max(min(exact), self._turned_at + SOON_S)
        return min(due, first), min(latest, first)

    def turn(self) -> None:
        """Silences, deadlines, and what is to be forgotten."""
        now = self.context.now()
        self._turned_at, self._soon_at = now, float("inf")
        self._look(now)
        self.context.session.turn(now)  # last: its thread waits for the interpreter, which this one gives up soon

    def _look(self, now: float) -> None:
        if self.context.session.valid != (self._door is not None) and not self._turning:
            self.context.loop.create_task(self._turn_door())
        if self._side_door and now >= self._side_door_until_s:
            self.context.loop.create_task(self._turn_side_door())
        if not self.context.session.valid:
            return
        if self.context.session.leads:
            self._tick_nodes(now)
        active = list(self.directory.active.items())
        if active:
            self.context.load.tick(now)
        slots = sum(owned.progress.slots for _, owned in active if not owned.progress.is_final)
        for job_id, owned in active:
            owned.progress.owner_slots = slots
            if isinstance(owned, MapJob | CallsJob):
                owned.tick(now)
            if owned.progress.is_final:
                if owned.known_state.is_final and self.directory.may_forget(owned, now):
                    self._forget(job_id)
                continue
            owned.check_nodes(now)
            failures = owned.progress.failures
            if owned.progress.pulls and (owned.progress.todo or failures.delayed or failures.waiting):
                owned.dispatch()
            if not owned.spec.detached and now - owned.client_seen > CLIENT_SILENT_S:
                reason = f"its client was silent for {CLIENT_SILENT_S:g} s"
                owned.perform(owned.progress.cancel(reason, "client_silent"))
        self._clients.look(self.directory.active.values(), now)
        self.logs.flush()
        self.matcher.tick(now)
        self.peers.tick(now)
        self.ownership.tick(now)

    def _tick_nodes(self, now: float) -> None:
        self.context.nodes.count_tasks(self.context.tasks_done_here)
        self.context.tasks_done_here = {}
        self.context.nodes.count_waste(self.context.wasted_here_s)
        self.context.wasted_here_s = {}
        quiet = self.context.connection.has_listened(QUIET_LEAST_S) and self.context.nodes.note_quiet(now)
        lost = self.context.nodes.silent(now)
        for entry in lost:
            put = PutNode(spec=entry.spec, unix_s=self.context.unix_s(), state=str(entry.state))
            self.context.journal.append([put], may_wait=True)
        if lost or quiet:
            self.matcher.kick()

    # ------------------------------------------------------------ forgetting

    def _forget(self, job_id: JobId) -> None:
        owned = self.directory.forget(job_id)
        if owned is not None and owned.spec.detached:
            owned.close()  # (the store knows what it needs)
        elif isinstance(owned, MapJob):
            owned.forget_pages()
        elif owned is not None:
            owned.drop_blobs()
        self.logs.forget(job_id)
        if owned is not None and not owned.spec.detached:
            self.ownership.unlisten(job_id)
