"""A map's owner: inputs in, results out by index, both within windows."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial

from fallow.coordinator.context import Context
from fallow.coordinator.owned_job import BACKLOG_BYTES, KEPT_RESULT_BYTES, OwnedJob
from fallow.coordinator.result_index import Recorded, in_order, without
from fallow.coordinator.stored_info import split_reason
from fallow.core.effects import Ended
from fallow.core.gathering import Gathering
from fallow.core.room import ResultBytes
from fallow.model.ids import Digest, NodeId, Token
from fallow.model.job import Blob, JobInfo, JobSpec
from fallow.model.parts import FaultPage, InputPage, ResultPage
from fallow.store.protocol import (
    DropInputPages,
    DropResultPages,
    Op,
    PageIndex,
    PutInputPage,
    ReplaceResults,
    SetJob,
    StoredJob,
    StoreError,
)
from fallow.wire.messages import (
    Appended,
    AppendInputs,
    CancelJob,
    Done,
    FetchResults,
    GetJob,
    HandIn,
    JobStatus,
    Msg,
    Refused,
    Results,
    RetryFailed,
)

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * 1024 * 1024
PARKED_LIMIT = 64
"""Fetches of one job that wait at once; beyond it the oldest is answered empty."""
FILES_FOR_ONE = 16
"""Bytes of results in files that count as one of those in messages: what a reader has not looked at yet takes room."""
TRIM_S = 0.5
TRIM_S_PER_NODE = 0.0002
"""What is trimmed is written with the counts of all nodes."""
INFO_S_PER_NODE = 0.0002
INFO_NODES = 1_000
"""With more nodes than these, a client is told how many tasks each did when it has everything, and not on the way."""
CLIENT_SILENT_S = 60.0


@dataclass(slots=True)
class Parked:
    message: FetchResults
    reply: str
    deadline: float


class MapJob(OwnedJob):
    """See the module."""

    def __init__(self, context: Context, spec: JobSpec, epoch: int, *, adopt: bool = False) -> None:
        super().__init__(context, spec, epoch, adopt=adopt)
        self._parked: list[Parked] = []
        self._gathering = Gathering(context.now())
        self._is_serving = False
        """Fetches that wait are looked through in a moment."""
        self._kept: deque[Recorded] = deque()
        self._kept_bytes = 0
        self._result_bytes = ResultBytes()
        self._consumed = 0
        self._consumed_seq = 0
        self._trim_at = 0.0
        self._info_due = 0.0
        self._trimmed = (0, 0)
        self._taken_by_node: dict[str, int] = {}
        self._taken_failed = 0
        """What results that the client has and the store forgets had counted for."""

    # ------------------------------------------------------------ from the store

    def restore(
        self, stored: StoredJob, inputs: Sequence[PageIndex], results: Sequence[PageIndex], done: object
    ) -> None:
        """Take up a job that another coordinator (or this one, before it died) had."""
        for row in inputs:
            page = InputPage(row.start, row.stop, Blob(Digest(row.digest), row.size))
            self.inputs.add(page, in_store=row.inline)
            if not row.inline:
                self.context.blobs.add(row.digest)
        covered = list(done)  # type: ignore[call-overload]
        failed = 0
        if not stored.state.is_final:
            self._taken_by_node, self._taken_failed = dict(stored.nodes), stored.failed
            self._nodes_by_name, failed = dict(stored.nodes), stored.failed
        for row in results:
            entry = Recorded(
                seq=row.seq,
                start=row.start,
                stop=row.stop,
                page_start=row.page_start,
                page=Blob(Digest(row.digest), row.size),
                failed_count=row.failed_count,
                failed=row.failed,
                fault=row.fault,
                node=row.node,
                inline=row.inline,
            )
            if not row.inline and row.fault is None:
                self.context.blobs.add(row.digest)
            self.results.add(entry)
            covered.append((row.start, row.stop))
            failed += row.failed_count
            self._next_seq = max(self._next_seq, row.seq + 1)
            self._nodes_by_name[row.node] = self._nodes_by_name.get(row.node, 0) + row.stop - row.start
        if stored.state.is_final:
            self._nodes_by_name = dict(stored.nodes)
        cursor = max([row.stop for row in inputs] + [stop for _, stop in covered] + [max(0, stored.consumed)])
        if stored.total >= 0:
            cursor = min(cursor, stored.total)
        self.progress.restore(done=covered, cursor=cursor, total=stored.total, state=stored.state, failed=failed)
        self.progress.reason_kind, self.progress.reason = split_reason(stored.reason)
        self.progress.retried = stored.retried
        self.input_error = stored.input_error
        self.known_state = stored.state
        self.ended_unix_s = stored.ended_unix_s
        self._consumed = max(0, stored.consumed)

    # ------------------------------------------------------------ inputs

    def append(self, message: AppendInputs, reply: str) -> None:
        self.client_seen = self.context.now()
        refusal = self.context.refusal()
        if refusal is not None:
            self._reply(reply, Refused(refusal[0], refusal[1], self.epoch, retry_after_s=0.5))
            return
        if self.progress.is_final:
            self._reply(reply, Refused("ended", self.progress.reason or f"the job is {self.known_state}", self.epoch))
            return
        ops = self.take_pages(message.pages)
        effects = []
        if message.total >= 0 and message.total == self.progress.cursor and self.progress.total < 0:
            if message.input_error:
                self.input_error = message.input_error
            ops.append(SetJob(self.job_id, self.epoch, total=message.total, input_error=message.input_error or None))
            effects = self.progress.end_inputs(message.total)
            if self.progress.state is not self.known_state and not self.progress.is_final:
                self.known_state = self.progress.state
                ops.append(SetJob(self.job_id, self.epoch, state=self.progress.state))
        answer = Appended(self.epoch, self.progress.cursor, WINDOW_BYTES)
        if ops:
            self.context.journal.append(ops, partial(self._reply, reply, answer))
        else:
            self._reply(reply, answer)
        self.perform(effects)
        self.context.kick_matcher()
        self.dispatch()

    def take_pages(self, pages: Sequence[InputPage]) -> list[Op]:
        """Take the pages that follow what is here; the rest comes again."""
        ops: list[Op] = []
        for page in pages:
            if page.start != self.progress.cursor or page.stop <= page.start:
                continue
            self.progress.add_inputs(page.start, page.stop)
            self.inputs.add(page)
            if page.page.data is None:
                self.context.blobs.add(page.page.digest)
                self.context.room.took(page.page.size)
            ops.append(PutInputPage(self.job_id, self.epoch, page.start, page.stop, page.page))
        return ops

    # ------------------------------------------------------------ results

    def before_hand_in(self, message: HandIn) -> None:
        for page in message.results:
            size = page.page.size if page.page.data is None else 0
            self._result_bytes.note(page.stop - page.start, size)
            self.context.room.took(size)

    def tell_recorded(self, recorded: list[Recorded], ack: tuple[NodeId, Token, int] | None) -> None:
        super().tell_recorded(recorded, ack)
        for entry in recorded:
            if entry.page.data:
                self._kept.append(entry)
                self._kept_bytes += len(entry.page.data)
        while self._kept_bytes > KEPT_RESULT_BYTES:
            old = self._kept.popleft()
            if old.page.data is not None:
                self._kept_bytes -= len(old.page.data)
                old.page = Blob(old.page.digest, old.page.size)
        if recorded and not self._is_serving:
            # One answer for all that is told in the same breath.
            self._is_serving = True
            self.context.loop.call_soon(self._serve)

    def wait_s(self, recorded: Sequence[Recorded]) -> float:
        size = sum(entry.size for entry in recorded if entry.inline)
        return self._gathering.wait_s(self.context.now(), size, self.progress.lacks_work)

    def tell_ended(self, ended: Ended) -> None:
        self._serve_parked()

    def fetch(self, message: FetchResults, reply: str) -> None:
        now = self.context.now()
        self.client_seen = now
        if message.consumed >= 0 and not self.spec.detached:
            self._consume(message)
        if not self._answer(message, reply):
            if message.wait_s <= 0:
                self._send_results(message, reply, [], message.cursor, False)
                return
            if len(self._parked) >= PARKED_LIMIT:
                old = self._parked.pop(0)
                self._send_results(old.message, old.reply, [], old.message.cursor, False)
            self._parked.append(Parked(message, reply, now + min(message.wait_s, 30.0)))

    def _serve(self) -> None:
        self._is_serving = False
        if not self.closed:
            self._serve_parked()

    def _serve_parked(self) -> None:
        self._parked = [parked for parked in self._parked if not self._answer(parked.message, parked.reply)]

    def tick(self, now: float) -> None:
        """Answer fetches that waited long enough, and let go of what was consumed."""
        if self._parked:
            due = [parked for parked in self._parked if parked.deadline <= now]
            self._parked = [parked for parked in self._parked if parked.deadline > now]
            for parked in due:
                self._send_results(parked.message, parked.reply, [], parked.message.cursor, False)
        if now >= self._trim_at:
            self._trim_at = now + max(TRIM_S, len(self._taken_by_node) * TRIM_S_PER_NODE)
            self._trim()

    def _answer(self, message: FetchResults, reply: str) -> bool:
        """Answer if there is something to say; False: it can wait."""
        entries: list[Recorded] = []
        size = 0
        cursor = message.cursor
        source = self.results.from_index(cursor) if message.ordered else self.results.from_seq(cursor)
        for entry in source:
            if message.ordered and 0 <= message.hint_stop <= entry.start:
                break
            cost = entry.size if entry.inline else max(256, entry.size // FILES_FOR_ONE)
            if entries and size + cost > message.max_bytes:
                break
            entries.append(entry)
            size += cost
            cursor = entry.stop if message.ordered else entry.seq + 1
        final = self.known_state.is_final
        if not entries:
            if not final:
                return False
            self._send_results(message, reply, [], cursor, True)
            return True
        self._send_results(message, reply, entries, cursor, False)
        return True

    def _send_results(
        self, message: FetchResults, reply: str, entries: list[Recorded], cursor: int, exhausted: bool
    ) -> None:
        missing = [entry.start for entry in entries if entry.inline and entry.page.data is None and not entry.fault]
        if missing:
            # By the time that these are read, the others may have been let go of.
            pages = {entry.start: entry.page for entry in entries}
            read = self.context.questions.ask(self.context.store.read_results, self.job_id, missing)
            self.context.loop.create_task(self._read_results(message, reply, entries, pages, cursor, read))
            return
        self._reply_results(message, reply, entries, {}, cursor, exhausted)

    async def _read_results(
        self,
        message: FetchResults,
        reply: str,
        entries: list[Recorded],
        pages: dict[int, Blob],
        cursor: int,
        read: Awaitable[dict[int, Blob]],
    ) -> None:
        try:
            pages.update(await read)
        except StoreError as error:
            log.warning("cannot read results of %s: %s", self.job_id, error)
            self._reply(reply, Refused("overloaded", f"the store cannot be read: {error}", self.epoch, 1.0))
            return
        self._reply_results(message, reply, entries, pages, cursor, False)

    def _reply_results(
        self,
        message: FetchResults,
        reply: str,
        entries: list[Recorded],
        read: dict[int, Blob],
        cursor: int,
        exhausted: bool,
    ) -> None:
        pages: list[ResultPage] = []
        faults: list[FaultPage] = []
        for entry in entries:
            if entry.fault is not None:
                faults.append(FaultPage(entry.start, *entry.fault))
                continue
            start = max(entry.start, message.cursor) if message.ordered else entry.start
            page = read.get(entry.start, entry.page)
            pages.append(ResultPage(start, entry.stop, entry.page_start, page, entry.failed_count, entry.failed))
        if message.ordered and faults and pages:
            pages, faults, cursor = in_order(pages, faults, message.cursor)
        self._reply(
            reply,
            Results(
                epoch=self.epoch,
                pages=tuple(pages),
                faults=tuple(faults),
                next_cursor=cursor,
                total=self.progress.total,
                state=str(self.known_state),
                reason=self.progress.reason if self.known_state.is_final else "",
                info=self._info_now(exhausted),
                exhausted=exhausted,
                reason_kind=self.progress.reason_kind if self.known_state.is_final else "",
            ),
        )

    def _info_now(self, exhausted: bool) -> JobInfo | None:
        """Counts for the client's progress, as often as they are worth what they cost: with thousands of nodes they
        outweigh the results."""
        now = self.context.now()
        if now < self._info_due and not exhausted and not self.known_state.is_final:
            return None
        is_over = exhausted or self.known_state.is_final
        self._info_due = now + len(self.heard.seen) * INFO_S_PER_NODE
        return self.info(by_node=is_over or len(self._nodes_by_name) <= INFO_NODES)

    # ------------------------------------------------------------ what the client has

    def _consume(self, message: FetchResults) -> None:
        before = self._backlogged()
        if message.ordered:
            self._consumed = max(self._consumed, message.consumed)
            gone = self.results.drop_below(self._consumed)
        else:
            self._consumed_seq = max(self._consumed_seq, message.consumed)
            gone = self.results.drop_below_seq(self._consumed_seq)
        now = self.context.now()
        for entry in gone:
            self._taken_by_node[entry.node] = self._taken_by_node.get(entry.node, 0) + entry.stop - entry.start
            self._taken_failed += entry.failed_count
            if not entry.inline and entry.fault is None:
                self.context.blobs.drop(entry.page.digest, now)
            elif entry.page.data is not None:
                self._kept_bytes -= len(entry.page.data)
                entry.page = Blob(entry.page.digest, entry.page.size)
        if gone:
            while self._kept and self._kept[0].page.data is None:
                self._kept.popleft()
            if before and not self._backlogged():
                self.dispatch()

    def _backlogged(self) -> bool:
        return not self.spec.detached and self.results.bytes > BACKLOG_BYTES

    def bound_leases(self) -> None:
        progress, room = self.progress, self.context.room
        tasks = room.result_tasks(self.job_id, self._result_bytes.per_task, progress.leased)
        progress.leasing_stop, progress.lease_room = 1 << 62, tasks
        if self._backlogged():
            progress.leasing_stop = self._consumed + 1
        if tasks == 0:
            # What its reader waits for goes on; where it has nothing to read, something at all, unless there is garbage
            # whose room is free in a moment.
            progress.leasing_stop, progress.lease_room = self._consumed + 1, 1
            if not len(self.results) and not self.spec.detached:
                is_stuck = not progress.leases and not len(self.context.blobs)
                progress.leasing_stop = 1 << 62 if is_stuck else 0

    def _trim(self) -> None:
        """Journal what may be forgotten, in bulk."""
        if self.spec.detached or self.progress.is_final:
            return
        below = self._consumed
        if below == 0 and self._consumed_seq:
            first = self.progress.done.first
            below = first[1] if first is not None and first[0] == 0 else 0
        mark = (below, self._consumed_seq)
        if mark == self._trimmed:
            return
        self._trimmed = mark
        now = self.context.now()
        for page in self.inputs.drop_below(below):
            if self.context.blobs.needed(page.page.digest) and page.page.data is None:
                self.context.blobs.drop(page.page.digest, now)
        ops: list[Op] = [DropInputPages(self.job_id, self.epoch, below)]
        if self._consumed_seq:
            ops.append(DropResultPages(self.job_id, self.epoch, below_seq=self._consumed_seq))
        else:
            ops.append(DropResultPages(self.job_id, self.epoch, below=self._consumed))
        ops.append(
            SetJob(
                self.job_id,
                self.epoch,
                consumed=self._consumed,
                nodes=dict(self._taken_by_node),
                failed=self._taken_failed,
            )
        )
        self.context.journal.append(ops, may_wait=True, within_s=TRIM_S)

    def forget_pages(self) -> None:
        """The job has ended and its client has everything: only its row stays."""
        self.drop_blobs()
        self.results.clear()
        self.inputs.drop_below(1 << 62)
        self.context.journal.append(
            [
                DropInputPages(self.job_id, self.epoch, 1 << 62),
                DropResultPages(self.job_id, self.epoch, below=1 << 62),
            ]
        )

    # ------------------------------------------------------------ orders

    def get(self, message: GetJob, reply: str) -> None:
        self._reply(reply, JobStatus(self.epoch, self.info()))

    def cancel(self, message: CancelJob, reply: str) -> None:
        self.client_seen = self.context.now()
        self.perform(self.progress.cancel(message.reason or "cancelled"))
        self._after_journal(reply, Done(self.epoch))

    def retry_failed(self, message: RetryFailed, reply: str) -> None:
        if not self.known_state.is_final:
            text = "the job still runs; its failed tasks can be run again when it has ended"
            self._reply(reply, Refused("invalid", text, self.epoch))
            return
        intervals = self.results.failed_intervals()
        if not intervals or str(self.known_state) != "succeeded":
            text = (
                f"a job that was {self.known_state} cannot be taken up again; submit it anew"
                if str(self.known_state) != "succeeded"
                else "no task of this job failed"
            )
            self._reply(reply, Refused("invalid", text, self.epoch))
            return
        self.progress.retry_failed(intervals)
        entries = list(self.results)
        self.results.clear()
        self._nodes_by_name = dict(self._taken_by_node)
        for entry in entries:
            pieces = without(entry, intervals)
            if not entry.inline and entry.fault is None:
                for _ in pieces:
                    self.context.blobs.add(entry.page.digest)
                self.context.blobs.drop(entry.page.digest, self.context.now())
            for piece in pieces:
                piece.seq = self._draw_seq()
                self.results.add(piece)
                count = self._nodes_by_name.get(piece.node, 0)
                self._nodes_by_name[piece.node] = count + piece.stop - piece.start
        self.known_state = self.progress.state
        ops: list[Op] = [
            ReplaceResults(self.job_id, self.epoch, tuple(intervals)),
            SetJob(
                self.job_id,
                self.epoch,
                state=self.progress.state,
                reason="",
                ended_unix_s=0.0,
                nodes=dict(self._taken_by_node),
                failed=self._taken_failed,
            ),
        ]
        self.context.journal.append(ops, lambda: self._reply(reply, JobStatus(self.epoch, self.info())))
        self.context.kick_matcher()

    def _after_journal(self, reply: str, answer: Msg) -> None:
        self.context.journal.append([], lambda: self._reply(reply, answer))

    def _reply(self, reply: str, message: Msg) -> None:
        if reply:
            self.context.say(reply, message)
