"""A job that this coordinator owns: the pure progress, its pages, and the effects turned into writes and messages.

Order matters: an effect is journalled, then told. Leases may run ahead of the journal; acknowledgements, results and
endings are told only from the journal's callback.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from fallow.coordinator.acknowledgements import Acknowledgements
from fallow.coordinator.context import Context
from fallow.coordinator.hand_in_blobs import without_lost
from fallow.coordinator.heard_nodes import HeardNodes
from fallow.coordinator.input_index import InputIndex
from fallow.coordinator.result_index import Recorded, ResultIndex, put_result, recorded_fault, recorded_page
from fallow.coordinator.saved_states import SavedStates, is_wanted
from fallow.coordinator.stored_info import info_of_owned, stored_reason
from fallow.coordinator.stored_inputs import StoredInputs
from fallow.core.effects import AskBack, Drop, Effect, Ended, Grant, Record, RecordFault, Wake
from fallow.core.job import JobProgress
from fallow.core.presence import QUIET_LEAST_S
from fallow.model.ids import JobId, NodeId, Token
from fallow.model.job import JobInfo, JobKind, JobSpec
from fallow.model.parts import HeldLease, InputPage, ResultPage
from fallow.model.states import JobState
from fallow.store.protocol import DropCheckpoints, Op, PutCheckpoint, SetJob
from fallow.wire import subjects
from fallow.wire.messages import (
    Assign,
    Done,
    HandIn,
    HandInAck,
    Held,
    Lease,
    NodeAnew,
    OwnerHere,
    Place,
    Pull,
    Refused,
    Revoke,
    SaveCheckpoint,
    TakeBack,
    Unpull,
)

log = logging.getLogger(__name__)

ADOPTION_S = 0.7
"""After a take-over, agents have this long to name their leases (NameLeases asks for them) before anything is leased
anew."""
RESTART_ADOPTION_S = 2.5
"""The same where the pool's only coordinator starts anew, perhaps with its NATS: agents reconnect first."""
KEPT_RESULT_BYTES = 16 * 1024 * 1024
"""Recent results kept in memory per job, beyond what the store has."""
AGAIN_BYTES = 64 * 1024
"""A lease with more bytes of inputs is not sent a second time."""
BACKLOG_BYTES = 1 << 30
"""Results of an attached job that its client has not taken, beyond which only what it waits for is leased."""


class OwnedJob:
    """Owner's side of one job. Subclasses say how clients are told: MapJob and CallsJob."""

    def __init__(self, context: Context, spec: JobSpec, epoch: int, *, adopt: bool = False) -> None:
        now = context.now()
        self.context = context
        self.spec = spec
        self.epoch = epoch
        adoption_s = ADOPTION_S if context.session.shared else RESTART_ADOPTION_S
        first = secrets.randbits(30) << 24 if context.session.shared and epoch == 1 else 0
        self.progress = JobProgress(spec, epoch, hold_until=now + adoption_s if adopt else 0.0, tokens_above=first)
        self.inputs = InputIndex()
        self._stored_inputs = StoredInputs(context, spec.job_id, self.inputs)
        self.results = ResultIndex()
        self.ended_unix_s = 0.0
        self.client_seen = now
        self.input_error = ""
        self.is_written = True
        """False while a job that was submitted here is not in the store yet: another may be its owner."""
        self.refused: dict[NodeId, str] = {}
        self.served = 0.0
        self.known_state = JobState.OPEN
        """The state that is durable, and that clients are told."""
        self._next_seq = 0
        self._wake_at: float | None = None
        self._nodes_by_name: dict[str, int] = {}
        self.heard = HeardNodes()
        self._sessions: dict[NodeId, str] = {}
        self.closed = False
        self.states = SavedStates(context.blobs)
        self.acks = Acknowledgements(context.loop, self.job_id, epoch, self._send_node)
        if spec.function.data is None:
            context.blobs.add(spec.function.digest)

    @property
    def job_id(self) -> JobId:
        return self.spec.job_id

    # ------------------------------------------------------------ agents

    def on_agent(self, message: HandIn | Pull | Unpull | Held | SaveCheckpoint | Place, reply: str) -> None:
        match message:
            case HandIn():
                self.on_hand_in(message)
            case Pull():
                self.on_pull(message)
            case Unpull():
                self.on_unpull(message)
            case Held():
                self.on_held(message)
            case SaveCheckpoint():
                self.on_checkpoint(message, reply)
            case Place():
                self.place(message)

    def on_pull(self, message: Pull) -> None:
        if self.progress.is_final:
            self._send_node(message.node_id, Revoke(self.job_id, self.epoch, (), f"the job is {self.progress.state}"))
            return
        self._hear_of(message.node_id)
        slot = (message.node_id, message.slot)
        self.progress.pull(slot, message.seq, message.idle, message.pages)
        self.dispatch()

    def on_unpull(self, message: Unpull) -> None:
        self.progress.unpull((message.node_id, message.slot), message.seq)

    def on_hand_in(self, message: HandIn) -> None:
        slot = (message.node_id, message.slot)
        self._hear_of(message.node_id)
        message = without_lost(message, self.context.blobs, self.context.is_there, self.context.now())
        self.before_hand_in(message)
        wasted_before_s = self.progress.wasted_s
        effects = self.progress.hand_in(
            slot=slot,
            token=message.token,
            results=message.results,
            give_back=message.give_back,
            deaths=message.deaths,
            retry_later=message.retry_later,
            ended=message.ended,
            run_s=message.run_s,
            reduced=message.reduced,
            wasted_s=message.wasted_s,
            now=self.context.now(),
        )
        ops: list[Op] = []
        if wasted_s := self.progress.wasted_s - wasted_before_s:
            wasted = self.context.wasted_here_s
            wasted[message.node_id] = wasted.get(message.node_id, 0.0) + wasted_s
            ops.append(SetJob(self.job_id, self.epoch, wasted_s=self.progress.wasted_s))
        if message.pull is not None and not self.progress.is_final:
            pull = message.pull
            self.progress.pull(slot, pull.seq, pull.idle, pull.pages)
        self.perform(effects, (message.node_id, message.token, message.seq), ops)
        self.dispatch()

    def before_hand_in(self, message: HandIn) -> None:
        """For subclasses."""

    def on_held(self, message: Held) -> None:
        """A heartbeat of a node that works for the job."""
        node_id = message.node_id
        self.context.node_names[node_id] = message.name
        if message.gone:
            self.forget_node(node_id, f"{message.name} left the pool")
            return
        self.node_anew(NodeAnew(node_id, message.name, message.session))
        self._sessions[node_id] = message.session
        self._hear_of(node_id)
        self.heard.beats_every(node_id, message.interval_s)
        now = self.context.now()
        self.perform(self.progress.beat(node_id, message.leases, now, message.interval_s, message.anew))
        if self.progress.pulls:
            self.dispatch()

    def node_anew(self, message: NodeAnew) -> None:
        """What an earlier session of the node held is lost."""
        if self._sessions.get(message.node_id, message.session) != message.session:
            self._sessions[message.node_id] = message.session
            self.on_node_lost(message.node_id, f"the agent of {message.name} started anew")

    def on_checkpoint(self, message: SaveCheckpoint, reply: str) -> None:
        """A task saves its state: keep it, then say so."""
        self._hear_of(message.node_id)
        if not is_wanted(self.progress, message):
            self.context.say(reply, Refused("ended", "the task runs elsewhere, or is done", self.epoch))
            return
        self.states.put(message.index, message.state, self.context.now())
        op = PutCheckpoint(self.job_id, self.epoch, message.index, message.state)
        self.context.journal.append([op], lambda: self.context.say(reply, Done(self.epoch)))

    def _hear_of(self, node_id: NodeId) -> None:
        if self.heard.hear(node_id, self.context.now(), bool(self.progress.quiet)):
            self.progress.node_heard(node_id)

    def check_nodes(self, now: float) -> None:
        """Nodes that are silent get nothing; those that have been for too long are lost."""
        if self.context.connection.has_listened(QUIET_LEAST_S):
            quiet = self.heard.quiet(now)
            for node_id in quiet:
                self.progress.node_quiet(node_id)
            if quiet:
                self.context.kick_matcher()
        for node_id, limit_s in self.heard.lost(now):
            self.forget_node(node_id, f"{self.node_name(node_id)} was silent for {limit_s:g} s")

    def next_s(self, before: float) -> float:
        """When a look at the job's nodes may find something, where that is before then; else any later time."""
        due = self.heard.next_s(before)
        return before if due is None else due

    def forget_node(self, node_id: NodeId, reason: str) -> None:
        self.heard.forget(node_id)
        self._sessions.pop(node_id, None)
        self.on_node_lost(node_id, reason)

    def node_name(self, node_id: str) -> str:
        return self.context.node_name(NodeId(node_id))

    def place(self, message: Place) -> None:
        """The leader wants a slot to work for this job."""
        self.progress.slots = max(1, message.share)
        if not self.progress.is_final:
            self.context.say(
                subjects.node(message.node_id), Assign(message.slot, message.seq, message.epoch, self.spec)
            )

    def on_node_lost(self, node_id: NodeId, reason: str) -> None:
        self.perform(self.progress.node_lost(node_id, reason))
        self.dispatch()

    # ------------------------------------------------------------ passing on

    def announce(self) -> None:
        """To its client: this is the owner now, or one that was cut off is back."""
        if not self.closed and not self.progress.is_final:
            self.context.say(subjects.client(self.spec.client_id), OwnerHere(self.job_id, self.epoch))

    def leases_held(self) -> tuple[tuple[NodeId, HeldLease], ...]:
        """Every lease that is out, for the next owner."""
        return tuple(
            (lease.node, HeldLease(self.job_id, lease.token, lease.slot[1], lease.start, lease.stop, lease.index))
            for lease in self.progress.leases.values()
            if not lease.doubled
        )

    def adopt(self, leases: Sequence[tuple[NodeId, HeldLease]]) -> None:
        """Go on with leases of the last owner."""
        by_node: dict[NodeId, list[HeldLease]] = {}
        for node_id, lease in leases:
            by_node.setdefault(node_id, []).append(lease)
        for node_id, held in by_node.items():
            self._hear_of(node_id)
            self.perform(self.progress.beat(node_id, held, self.context.now()))

    def close(self) -> None:
        """This coordinator has no more to do with the job: nothing of it is told or journalled any more. What is not
        acknowledged by now is handed in again, to the job's next owner."""
        self.closed = True
        self.context.room.forget(self.job_id)
        self.states.release()
        for digest in self.named_blobs():
            self.context.blobs.release(digest)

    def withdraw(self, reason: str) -> None:
        """The job could not be taken in after all: nodes forget it, and what its client sent for it is not kept."""
        if not self.progress.is_final:
            self.progress.cancel(reason)
            self._release_nodes(Ended(self.job_id, self.progress.state, reason))
        self.drop_blobs()
        self.closed = True

    def drop_blobs(self) -> None:
        """Nothing of the job needs its blobs any more."""
        now = self.context.now()
        self.context.room.forget(self.job_id)
        self.states.drop([(0, 1 << 62)], now)
        for digest in self.named_blobs():
            self.context.blobs.drop(digest, now)

    def named_blobs(self) -> Iterator[str]:
        """Those that are counted for the job, but for saved states."""
        for entry in self.results:
            if not entry.inline and entry.fault is None:
                yield entry.page.digest
        if self.spec.kind is JobKind.MAP:
            for page in self.inputs.pages():
                if page.page.data is None and not self.inputs.is_let_go(page.start):
                    yield page.page.digest
        if self.spec.function.data is None:
            yield self.spec.function.digest

    # ------------------------------------------------------------ effects

    def dispatch(self) -> None:
        if not self.is_written and self.context.session.shared:
            return  # another coordinator may have been sent the job too: the store says whose it is
        self.bound_leases()
        self.perform(self.progress.dispatch(self.context.now()))

    def bound_leases(self) -> None:
        """For subclasses: how much may be leased (progress.leasing_stop, progress.lease_room)."""

    def perform(
        self, effects: Iterable[Effect], ack: tuple[NodeId, Token, int] | None = None, more: Iterable[Op] = ()
    ) -> None:
        """Journal what is to be kept (and `more`), then tell; send the rest at once."""
        ops: list[Op] = [*more]
        recorded: list[Recorded] = []
        ended: Ended | None = None
        for effect in effects:
            match effect:
                case Grant():
                    self._grant(effect)
                case AskBack():
                    order = TakeBack(self.job_id, self.epoch, effect.token, effect.slot[1], effect.share)
                    self._send_node(effect.slot[0], order)
                case Drop():
                    self._send_node(effect.node, Revoke(self.job_id, self.epoch, effect.tokens, effect.reason))
                case Record():
                    recorded.append(self._recorded(effect.page, effect.node))
                case RecordFault():
                    recorded.append(recorded_fault(self._draw_seq(), effect.fault, effect.node))
                case Ended():
                    ended = effect
                case Wake():
                    self._wake(effect.at)
        if not recorded and ended is None and not ops:
            if ack is not None:
                self.tell_recorded([], ack)
            return
        for entry in recorded:
            name = entry.node
            self._nodes_by_name[name] = self._nodes_by_name.get(name, 0) + entry.stop - entry.start
        self.keep(ops, recorded, ended)
        if self.states:
            over = [(0, 1 << 62)] if ended is not None else [(entry.start, entry.stop) for entry in recorded]
            gone = self.states.drop(over, self.context.now())
            ops += [DropCheckpoints(self.job_id, self.epoch, start, stop) for start, stop in gone]
        if ended is not None:
            self.context.room.forget(self.job_id)
            self._release_nodes(ended)
        if ops:
            wait_s = self.wait_s(recorded) if ended is None else 0.0
            then = partial(self._durable, recorded, ack, ended)
            self.context.journal.append(ops, then, may_wait=ended is None, within_s=wait_s)
        else:
            self._durable(recorded, ack, ended)

    def wait_s(self, recorded: Sequence[Recorded]) -> float:
        """For subclasses: how long these may wait to be written with others."""
        return 0.0

    def keep(self, ops: list[Op], recorded: list[Recorded], ended: Ended | None) -> None:
        """Add the writes for these effects (a standing job of calls writes only its end)."""
        ops += [put_result(self.job_id, self.epoch, entry) for entry in recorded]
        if ended is not None:
            ops.append(self.ending_op(ended))

    def ending_op(self, ended: Ended) -> SetJob:
        self.ended_unix_s = self.context.unix_s()
        return SetJob(
            job_id=self.job_id,
            epoch=self.epoch,
            state=ended.state,
            reason=stored_reason(self.progress.reason_kind, ended.reason),
            total=self.progress.total,
            ended_unix_s=self.ended_unix_s,
            nodes=self.info().nodes,
            retried=self.progress.retried,
            failed=self.progress.failed_count,
        )

    def _durable(self, recorded: list[Recorded], ack: tuple[NodeId, Token, int] | None, ended: Ended | None) -> None:
        if self.closed:
            return
        # A commit is proof of ownership: memory follows it even while the session has lapsed and nothing may be said.
        if ended is not None:
            self.known_state = ended.state
        self.tell_recorded(recorded, ack)
        if ended is not None:
            self.acks.flush()
            self.tell_ended(ended)

    def tell_recorded(self, recorded: list[Recorded], ack: tuple[NodeId, Token, int] | None) -> None:
        """Results are durable: clients may have them, the agent may forget them."""
        for entry in recorded:
            self.results.add(entry)
            done = self.context.tasks_done_here
            done[NodeId(entry.node)] = done.get(NodeId(entry.node), 0) + entry.stop - entry.start
        if ack is not None:
            self.acks.add(*ack)

    def tell_ended(self, ended: Ended) -> None:
        """For subclasses."""

    def _release_nodes(self, ended: Ended) -> None:
        """Every node that worked on the job forgets it."""
        for node_id in self.heard.seen:
            self._send_node(node_id, Revoke(self.job_id, self.epoch, (), ended.reason or str(ended.state)))
        self.context.nodes.forget_job(self.job_id)
        self.context.kick_matcher()

    def _draw_seq(self) -> int:
        """The next number in the order of recording."""
        seq = self._next_seq
        self._next_seq += 1
        return seq

    def _recorded(self, page: ResultPage, node: NodeId) -> Recorded:
        if page.page.data is None:
            self.context.blobs.add(page.page.digest)
        return recorded_page(self._draw_seq(), page, node)

    # ------------------------------------------------------------ leases out

    def _grant(self, grant: Grant) -> None:
        pages = self.grant_pages(grant.start, grant.stop)
        if grant.again and sum(len(page.page.data or b"") for page in pages) > AGAIN_BYTES:
            return  # on a narrow way it may well be coming; it is given to another soon, if not
        wanted = [page for page in pages if page.start not in grant.held_pages]
        self._stored_inputs.fill(wanted, partial(self._send_lease, grant))

    def grant_pages(self, start: int, stop: int) -> list[InputPage]:
        """The input pages that hold [start, stop)."""
        return self.inputs.covering(start, stop)

    def _send_lease(self, grant: Grant, pages: Sequence[InputPage]) -> None:
        lease = Lease(
            job_id=self.job_id,
            epoch=self.epoch,
            token=grant.token,
            slot=grant.slot[1],
            pull_seq=grant.pull_seq,
            start=grant.start,
            stop=grant.stop,
            budget_s=grant.budget_s,
            pages=tuple(pages),
            alone=grant.alone,
            attempt=grant.attempt,
            checkpoints=self.states.of(grant.start, grant.stop) if self.states else (),
            acks=self.acks.take(grant.slot[0]) if self.spec.kind is JobKind.MAP else (),
        )
        self._send_node(grant.slot[0], lease)

    def _wake(self, at: float) -> None:
        if self._wake_at is not None and self._wake_at <= at and self._wake_at > self.context.now():
            return
        self._wake_at = at
        self.context.loop.call_at(at + 0.001, self._woken, at)

    def _woken(self, at: float) -> None:
        if self.closed:
            return
        if self._wake_at == at:
            self._wake_at = None
        if not self.progress.is_final:
            self.dispatch()
            self.context.kick_matcher()

    def _send_node(self, node_id: NodeId, message: Lease | TakeBack | Revoke | HandInAck) -> None:
        if self.closed or not self.context.session.valid:
            return  # the job may be another's by now
        self.context.say(subjects.node(node_id), message)

    # ------------------------------------------------------------ what is known

    def info(self, by_node: bool = True) -> JobInfo:
        """`by_node`: with how many tasks each node did."""
        return info_of_owned(self, self._nodes_by_name, by_node)
