"""The owner of a standing job of single calls.

Its client keeps every input until it has the answer and sends again what the owner does not know, so nothing but the
job's row is journalled: an answer needs no commit, and after a take-over the client's own memory is the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fallow.coordinator.context import Context
from fallow.coordinator.owned_job import OwnedJob
from fallow.coordinator.result_index import Recorded
from fallow.coordinator.stored_info import info_of_stored
from fallow.core.effects import Ended
from fallow.core.intervals import IntervalSet
from fallow.core.presence import QUIET_LEAST_S, quiet_after_s
from fallow.model.ids import Interval, NodeId, SlotKey, Token, is_call_token
from fallow.model.job import JobSpec
from fallow.model.parts import FaultPage, InputPage, ResultPage
from fallow.store.protocol import Op, StoredJob
from fallow.wire import subjects
from fallow.wire.messages import (
    AppendCalls,
    CallResults,
    CallSlot,
    CallsUnknown,
    CancelCalls,
    HandIn,
    Held,
    Pull,
    SyncCalls,
    Unpull,
)

FIRST_CALL_S = 5.0
"""A job of calls is submitted with its first call on its heels. One that has not come by then was thought better of."""
INPUT_PAGES_LIMIT = 20_000
"""Pages of calls waiting at once; the client's window is far below."""
PUSH_BYTES = 1 << 20
CAME_BACK_LIMIT = 1000
OPEN_SLOTS_LIMIT = 16
"""Slots to which a client may send calls itself. With more threads than that its calls do not wait for the way."""


class CallsJob(OwnedJob):
    """See the module."""

    def __init__(self, context: Context, spec: JobSpec, epoch: int, *, adopt: bool = False) -> None:
        super().__init__(context, spec, epoch, adopt=False)
        self._by_index: dict[int, InputPage] = {}
        self._is_told = False
        """The agent has sent what it hands in to the client itself."""
        self._open_slots: set[SlotKey] = set()
        """Slots that the client was told to wait for its calls."""
        self._stored: dict[int, InputPage] = {}
        """Inputs that lie in the blob store, until their client has the answers."""
        self._heard_of = 0
        """Below it there may be calls that this owner knows from agents only, without their inputs."""
        self._submitted_s = self.client_seen
        self._came_back: set[int] = set()
        """Calls that their client sent to a slot, and that this did not take: it said so before the client's own word
        of them came."""

    def submitted(self) -> None:
        """It is new: its client has a call for it, and is about to send that."""
        self.progress.expects_call = True

    def restore_ended(self, stored: StoredJob) -> None:
        """Be what the store says of a job that is over: how many calls it answered, and how it ended."""
        info = info_of_stored(stored)
        count = info.counts.done
        self.progress.restore(
            done=[(0, count)] if count else [], cursor=count, total=count, state=stored.state, failed=stored.failed
        )
        self.progress.reason_kind, self.progress.reason = info.reason_kind, info.reason
        self.progress.retried = stored.retried
        self._nodes_by_name = dict(stored.nodes)
        self.known_state = stored.state
        self.ended_unix_s = stored.ended_unix_s

    def tick(self, now: float) -> None:
        """A call on a node that is silent does not wait until that is lost: it runs elsewhere too, if that may be."""
        if self.progress.expects_call and now - self._submitted_s >= FIRST_CALL_S:
            self.progress.expects_call = False
            self.context.kick_matcher()
        self._close_slots(slot for slot in self._open_slots if slot[0] in self.progress.quiet)
        if not self.progress.leases or not self.context.connection.has_listened(QUIET_LEAST_S):
            return
        interval_s = self.heard.longest_interval_s()
        if self.progress.doubt(now, quiet_after_s(interval_s)):
            self.context.kick_matcher()
            self.dispatch()

    def next_s(self, before: float) -> float:
        return min(super().next_s(before), self.progress.doubt_at if self.progress.leases else before)

    # ------------------------------------------------------------ client

    def append(self, message: AppendCalls) -> None:
        self.client_seen = self.context.now()
        if self.progress.is_final:
            self._tell_end()
            return
        for page in message.pages:
            self._take(page)
        if (slot := message.sent_to) is not None and message.pages:
            index = message.pages[0].start
            is_known = slot in self._open_slots or self.progress.has_asked(slot)
            if is_known and index not in self._came_back:
                self.progress.sent_call(slot, index, self.client_seen)
        if self._came_back:
            self._came_back.difference_update(page.start for page in message.pages)
        self.dispatch()
        if self.progress.demand > self.progress.slots or not self.progress.pulls:
            self.context.kick_matcher()
        self._forget(message.received)

    def _take(self, page: InputPage) -> None:
        progress = self.progress
        if page.page.data is None and page.start not in self._stored:
            self._stored[page.start] = page
            self.context.blobs.add(page.page.digest, unstored=True)
            self.context.room.took(page.page.size)
        known = page.start < progress.cursor
        if not known:
            progress.add_call(page.start, page.stop)
            self.inputs.add(page)
            return
        answered = IntervalSet((entry.start, entry.stop) for entry in self.results)
        for index in range(page.start, min(page.stop, progress.cursor)):
            if index in progress.done and index not in answered:
                self._by_index[index] = page
                progress.reopen_call(index)
        if page.stop > progress.cursor:
            progress.add_call(progress.cursor, page.stop)
            self.inputs.add(page)

    def sync(self, message: SyncCalls) -> None:
        """Push again what the client lacks, and name what this owner has never heard of."""
        self.progress.expects_call = False
        self.client_seen = self.context.now()
        if self.progress.is_final:
            self._tell_end()
            return
        self._forget(message.received)
        self._open_slots.clear()  # its client may have missed what it was told of them
        progress = self.progress
        unknown = IntervalSet()
        waiting = IntervalSet(message.waiting)
        for start, stop in waiting:
            if stop > progress.cursor:
                unknown.add(max(start, progress.cursor), stop)
            for a, b in progress.done.overlap(start, min(stop, progress.cursor)):
                unknown.add(a, b)
        again = []
        for entry in self.results:
            if waiting.intersects(entry.start, entry.stop):
                again.append(entry)
            unknown.remove(entry.start, entry.stop)
        if again:
            self._push(again)
        running = tuple(
            piece
            for lease in progress.leases.values()
            for piece in lease.pending.intervals()
            if waiting.intersects(*piece)
        )
        answer = CallsUnknown(self.job_id, self.epoch, unknown.intervals(), running)
        self.context.say(subjects.client(self.spec.client_id), answer)

    def cancel_calls(self, message: CancelCalls) -> None:
        """Calls not begun never run; those that run are stopped."""
        self.client_seen = self.context.now()
        self.perform(self.progress.cancel_calls(message.indices))
        self._forget_stored(message.indices)

    def end(self, reason: str, settled: bool) -> None:
        """The client will call no more: a success where it has every answer, even those that agents gave it and have
        not handed in yet."""
        self.client_seen = self.context.now()
        progress = self.progress
        if settled and progress.cursor:
            progress.done.add(0, progress.cursor)
            self.perform(progress.end_inputs(progress.cursor))
        else:
            self.perform(progress.cancel(reason))

    def _forget_stored(self, over: Sequence[Interval]) -> None:
        """These calls are over: their inputs are not sent again."""
        now = self.context.now()
        for page in list(self._stored.values()) if self._stored else ():
            if any(start <= page.start and page.stop <= stop for start, stop in over):
                del self._stored[page.start]
                self.context.blobs.drop(page.page.digest, now, unstored=True)

    def drop_blobs(self) -> None:
        self._forget_stored([(0, 1 << 62)])
        super().drop_blobs()

    def close(self) -> None:
        for page in self._stored.values():
            self.context.blobs.release(page.page.digest, unstored=True)
        self._stored.clear()
        super().close()

    def _forget(self, received: Sequence[Interval]) -> None:
        if not received:
            return
        self._forget_stored(received)
        for start, stop in received:
            for entry in self.results.within(start, stop):
                self.results.drop(entry)
                if not entry.inline and entry.fault is None:
                    self.context.blobs.drop(entry.page.digest, self.context.now())
        done = self.progress.done.first
        if done is not None and done[0] == 0:
            self.inputs.drop_below(done[1])
        for index in [i for i in self._by_index if i in self.progress.done]:
            del self._by_index[index]

    def dispatch(self) -> None:
        self._set_aside_unknown()
        super().dispatch()

    def _set_aside_unknown(self) -> None:
        """Calls whose inputs never came (their lease was given back after a take-over) wait for their client, whose
        next SyncCalls hears that they are unknown. Leased without inputs they would come back at once, for ever."""
        if not self._heard_of:
            return
        todo = self.progress.todo
        for start, stop in todo.overlap(0, self._heard_of):
            for index in range(start, stop):
                if index not in self._by_index and not self.inputs.covering(index, index + 1):
                    todo.remove(index, index + 1)
                    self.progress.done.add(index, index + 1)

    # ------------------------------------------------------------ agents

    def on_hand_in(self, message: HandIn) -> None:
        self._is_told = message.told
        try:
            super().on_hand_in(message)
        finally:
            self._is_told = False
        slot = (message.node_id, message.slot)
        if message.pull is not None or self.progress.waiting(slot) is not None:
            self._open_slot(slot)
        elif message.ended and slot in self._open_slots and not self.progress.is_busy(slot):
            self._close_slots([slot])

    def on_pull(self, message: Pull) -> None:
        super().on_pull(message)
        self._open_slot((message.node_id, message.slot))

    def on_unpull(self, message: Unpull) -> None:
        super().on_unpull(message)
        slot = (message.node_id, message.slot)
        if slot in self._open_slots and self.progress.waiting(slot) is None:
            self._close_slots([slot])

    def on_node_lost(self, node_id: NodeId, reason: str) -> None:
        self._close_slots(slot for slot in self._open_slots if slot[0] == node_id)
        super().on_node_lost(node_id, reason)

    def _open_slot(self, slot: SlotKey) -> None:
        """Its client may send calls to a slot that is idle, past this owner: it is told once there is a call, so that
        nothing comes before the first answer."""
        waiting = self.progress.waiting(slot)
        if waiting is None or not waiting.idle or slot in self._open_slots or not self.progress.cursor:
            return
        if len(self._open_slots) < (self.spec.max_leases or OPEN_SLOTS_LIMIT):
            self._open_slots.add(slot)
            self._tell_slot(slot, is_open=True)

    def _close_slots(self, slots: Iterable[SlotKey]) -> None:
        for slot in list(slots):
            self._open_slots.discard(slot)
            self._tell_slot(slot, is_open=False)

    def _tell_slot(self, slot: SlotKey, is_open: bool) -> None:
        message = CallSlot(self.job_id, self.epoch, slot[0], slot[1], is_open)
        self.context.say(subjects.client(self.spec.client_id), message)

    def before_hand_in(self, message: HandIn) -> None:
        """Answers of a lease from before a take-over: the numbers are news to this owner."""
        for page in message.results:
            if page.stop > self.progress.cursor:
                self.progress.add_call(page.start, page.stop)
        if message.stop > self.progress.cursor and not message.results:
            self.progress.add_call(message.start, message.stop)
            self._heard_of = max(self._heard_of, message.stop)
            if is_call_token(message.token) and len(self._came_back) < CAME_BACK_LIMIT:
                self._came_back.update(start for start, _ in message.give_back)

    def on_held(self, message: Held) -> None:
        for lease in message.leases:
            if lease.stop > self.progress.cursor:
                self.progress.add_call(lease.start, lease.stop)
                self._heard_of = max(self._heard_of, lease.stop)
        super().on_held(message)

    def keep(self, ops: list[Op], recorded: list[Recorded], ended: Ended | None) -> None:
        if ended is not None:
            ops.append(self.ending_op(ended))

    def tell_recorded(self, recorded: list[Recorded], ack: tuple[NodeId, Token, int] | None) -> None:
        # Where the agent's own message is lost, the client asks (SyncCalls).
        entries = [entry for entry in recorded if entry.fault is not None] if self._is_told else recorded
        if entries:
            self._push(entries)
        super().tell_recorded(recorded, ack)

    def tell_ended(self, ended: Ended) -> None:
        self._tell_end()

    def grant_pages(self, start: int, stop: int) -> list[InputPage]:
        pages = {page.start: page for page in self.inputs.covering(start, stop)}
        if self._by_index:
            again = (self._by_index.get(index) for index in range(start, stop))
            pages |= {page.start: page for page in again if page is not None}
        return [pages[at] for at in sorted(pages)]

    def _push(self, entries: Iterable[Recorded]) -> None:
        pages: list[ResultPage] = []
        faults: list[FaultPage] = []
        size = 0
        for entry in entries:
            if entry.fault is not None:
                faults.append(FaultPage(entry.start, *entry.fault))
                continue
            pages.append(ResultPage(entry.start, entry.stop, entry.page_start, entry.page))
            size += entry.size
            if size > PUSH_BYTES:
                self._push_now(pages, faults)
                pages, faults, size = [], [], 0
        if pages or faults:
            self._push_now(pages, faults)

    def _push_now(self, pages: list[ResultPage], faults: list[FaultPage]) -> None:
        message = CallResults(self.job_id, self.epoch, tuple(pages), tuple(faults))
        self.context.say(subjects.client(self.spec.client_id), message)

    def _tell_end(self) -> None:
        reason = self.progress.reason or f"the job is {self.progress.state}"
        kind = f"[{self.progress.reason_kind}] " if self.progress.reason_kind else ""
        message = CallResults(self.job_id, self.epoch, (), (), ended=kind + reason)
        self.context.say(subjects.client(self.spec.client_id), message)
