"""Single calls: one standing job per function, to which calls are appended; answers are pushed.

A caller's thread appends to a queue and wakes the loop once; the loop sends what fits the window as one page. A call
that nothing waits before is sent by its caller's own thread: waking another one costs a tenth of its time. A call
is 'running' from the moment its page is sent, and can be cancelled before. The client keeps pages until every call in
them is answered, and sends again what the owner does not know.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fallow.core.intervals import IntervalSet
from fallow.model.errors import JobCancelled, JobError, TaskCancelled
from fallow.model.ids import SlotKey
from fallow.model.job import INLINE_LIMIT_BYTES, Blob, JobSpec, Purpose
from fallow.sdk.call_encoding import encode_call, encode_items
from fallow.sdk.call_slots import CallSlots, with_lease
from fallow.sdk.failures import ending, fault_exception
from fallow.sdk.paging import RateWindow
from fallow.sdk.quiet import Quiet
from fallow.sdk.reply import Awaited, Replies, Reply, SentPage, Sink, give_out
from fallow.wire import subjects
from fallow.wire.blobs import hash_segments
from fallow.wire.messages import (
    AppendCalls,
    CallResults,
    CallSlot,
    CallsUnknown,
    CancelCalls,
    FaultPage,
    GetJob,
    InputPage,
    OwnerHere,
    ResultPage,
    SubmitJob,
    SyncCalls,
)

if TYPE_CHECKING:
    from fallow.sdk.client import Client
    from fallow.sdk.output import OutputPrinter

PAGE_CALLS_LIMIT = 8192
PAGE_BYTES_AIM = 128 * 1024
MESSAGE_BYTES = 2 << 20
DIRECT_BYTES = 32 * 1024
"""A call up to this is sent by its caller's thread, where nothing waits before it."""
RECEIVED_INTERVALS_LIMIT = 1000


class Calls:
    """The standing job of one function. Made by `open_calls`."""

    def __init__(self, client: Client, spec: JobSpec, printer: OutputPrinter | None) -> None:
        self.client = client
        self.spec = spec
        self.job_id = spec.job_id
        self.name = spec.name
        self._plain = spec.least_tier > 0
        self.ended: BaseException | None = None
        self.epoch = 0
        self._printer = printer
        self._lock = threading.Lock()
        self._queue: deque[tuple[Sink, Any, list[Any] | None]] = deque()
        self._woken = False
        # Changed under the lock, since callers' threads send too:
        self._state = "new"
        self._next = 0
        self._waiting: dict[int, tuple[Sink, SentPage]] = {}
        self._sent: dict[int, SentPage] = {}
        self._slots = CallSlots()
        self._told: tuple[tuple[int, int], ...] = ()
        """What of `_received` the next message tells."""
        # Below: on the loop only.
        self._received = IntervalSet()
        self._taken = 0
        self._replies = Replies()
        self._window = RateWindow(2)
        self._item_bytes = 256
        self._heard = 0.0
        self._quiet = Quiet(client.thread, lambda: self._heard, lambda: bool(self._waiting), self._sync)
        self._under_way = 0
        """Calls that are neither queued nor sent: their large page is being put."""
        self._idle: list[Future[None]] = []
        self._closing = False

    def describe(self) -> str:
        return self.name

    # ------------------------------------------------------------ any thread

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call and wait for it."""
        reply = Reply(self._plain)
        # Encoded here: errors are the caller's, and the loop stays free.
        segments = encode_call((args, kwargs))
        try:
            if not self._send_directly(reply, segments):
                self._enqueue(reply, None, segments)
            return reply.wait(self.name)
        except (KeyboardInterrupt, SystemExit):
            self.client.later(self.drop, reply)
            raise

    def _send_directly(self, reply: Reply, segments: list[Any]) -> bool:
        if len(segments) != 1 or len(segments[0]) > DIRECT_BYTES:
            return False
        digest, size = hash_segments(segments)
        with self._lock:
            if self._state != "open" or self._queue or self._woken or len(self._waiting) >= self._window.size:
                return False
            slot = self._slots.take(self._next, len(self._waiting))
            epoch = self.epoch
            page = self._sent_page(self._next, (reply,), Blob(digest, size, segments[0]))
            self._next += 1
        message = AppendCalls(self.job_id, self.client.id, (page,), self._told, slot)
        if not self.client.transport.send_now(*with_lease(message, epoch)):
            self.client.later(self._send, (page,))
        if not self._quiet.is_armed:
            self._quiet.arm()
        return True

    def submit(self, sink: Future[Any], item: Any) -> None:
        """Queue one call; its answer goes to the future."""
        self._enqueue(sink, item, None)

    def _enqueue(self, sink: Sink, item: Any, segments: list[Any] | None) -> None:
        if self.ended is not None:
            raise self.ended
        with self._lock:
            self._queue.append((sink, item, segments))
            if self._woken:
                return
            self._woken = True
        self.client.thread.loop.call_soon_threadsafe(self._flush)

    def cancel_queued(self) -> None:
        """Cancel what is not sent."""
        with self._lock:
            queue, self._queue = self._queue, deque()
        for sink, _, _ in queue:
            if isinstance(sink, Future):
                sink.cancel()
                sink.set_running_or_notify_cancel()
            else:
                sink.set_exception(TaskCancelled("the call was cancelled."))
        self.client.later(self._maybe_idle)

    def close(self) -> None:
        """No call will follow: the standing job ends when none is out."""
        self.client.later(self._begin_close)

    def abort(self) -> None:
        """End the standing job now, with all that is out."""
        self.client.later(self._abort)

    def wait_idle(self) -> None:
        """Wait until every call is answered."""
        idle: Future[None] = Future()
        self.client.later(self._notify_idle, idle)
        while not self.client.closed:
            try:
                idle.result(1.0)
                return
            except TimeoutError:
                continue

    # ------------------------------------------------------------ sending

    def _flush(self) -> None:
        self._woken = False
        if self._state == "open":
            self._send_queued()
        elif self._state == "new":
            self._state = "opening"
            self.client.attached[self.job_id] = self
            self.client.spawn(self._open())

    async def _open(self) -> None:
        try:
            await asyncio.wrap_future(self.client._opened)
            if self._printer is not None:
                await self._printer.follow(self.client)
            reply = await self.client.ask(subjects.POOL, SubmitJob(self.spec))
        except BaseException as error:
            self._fail_all(error)
            return
        self.epoch = max(self.epoch, reply.epoch)
        self._window.set_slots(self.client.info.slots)
        self._state = "open"
        self._send_queued()

    def _send_queued(self) -> None:
        queue = self._queue
        pages: list[InputPage] = []
        size = 0
        room = self._window.size - len(self._waiting)
        while queue and room > 0:
            page = self._next_page(min(room, PAGE_CALLS_LIMIT, max(1, PAGE_BYTES_AIM // self._item_bytes)))
            if page is None:
                continue
            room -= page.stop - page.start
            pages.append(page)
            size += page.page.size
            if size > MESSAGE_BYTES:
                self._send(pages)
                pages, size = [], 0
        if pages:
            self._send(pages, self._slot_for(pages))
        elif self._idle or self._closing:
            self._maybe_idle()  # all that was queued has been cancelled

    def _slot_for(self, pages: Sequence[InputPage]) -> SlotKey | None:
        page = pages[0]
        if len(pages) > 1 or page.stop - page.start > 1 or page.page.size > DIRECT_BYTES:
            return None
        with self._lock:
            return self._slots.take(page.start, len(self._waiting) - 1)

    def _next_page(self, most: int) -> InputPage | None:
        """Take up to `most` queued calls as one page; None where nothing came of it that can be sent now."""
        sinks: list[Sink] = []
        items: list[Any] = []
        segments: list[Any] | None = None
        while self._queue and len(sinks) < most:
            with self._lock:
                if not self._queue or (sinks and self._queue[0][2] is not None):
                    break
                sink, item, segments = self._queue.popleft()
            if not sink.set_running_or_notify_cancel():
                segments = None
                continue
            sinks.append(sink)
            items.append(item)
            if segments is not None:
                break
        if not sinks:
            return None
        if segments is None:
            segments = encode_items(sinks, items)
            if segments is None:
                return None
        size = sum(map(len, segments))
        self._item_bytes = max(16, size // len(sinks))
        with self._lock:
            start = self._next
            self._next += len(sinks)
        if size > INLINE_LIMIT_BYTES:
            self.client.spawn(self._send_large(start, sinks, segments))
            return None
        digest, size = hash_segments(segments)
        data = segments[0] if len(segments) == 1 else b"".join(segments)
        with self._lock:
            return self._sent_page(start, sinks, Blob(digest, size, data))

    def _sent_page(self, start: int, sinks: Sequence[Sink], blob: Blob) -> InputPage:
        page = InputPage(start, start + len(sinks), blob)
        sent = SentPage(page)
        self._sent[start] = sent
        for index, sink in enumerate(sinks, start):
            self._waiting[index] = (sink, sent)
            if type(sink) is Reply or type(sink) is Awaited:
                sink.index = index
        return page

    async def _send_large(self, start: int, sinks: Sequence[Sink], segments: list[Any]) -> None:
        from fallow.sdk.room import put_waiting

        self._under_way += 1
        try:
            blob = await put_waiting(
                self.client,
                lambda: self.client.blobs.put_segments(segments, durable=False, purpose=Purpose.INPUTS),
            )
            with self._lock:
                page = self._sent_page(start, sinks, blob)
            self._send((page,))
        except Exception as error:
            for sink in sinks:
                sink.set_exception(error)
        finally:
            self._under_way -= 1
            self._maybe_idle()

    def _send(self, pages: Sequence[InputPage], slot: SlotKey | None = None) -> None:
        message = AppendCalls(self.job_id, self.client.id, tuple(pages), self._told, slot)
        for publication in with_lease(message, self.epoch):
            self.client.transport.send(*publication)
        if not self._quiet.is_armed:
            self._quiet.arm()

    def _received_more(self) -> None:
        told = self._received.intervals()
        self._told = told if len(told) <= RECEIVED_INTERVALS_LIMIT else told[:RECEIVED_INTERVALS_LIMIT]

    # ------------------------------------------------------------ answers

    def message(self, message: Any) -> None:
        if message.epoch < self.epoch:
            return
        if message.epoch > self.epoch:
            self.epoch = message.epoch
            with self._lock:
                self._slots.clear()
        self._heard = self.client.thread.loop.time()
        if isinstance(message, CallResults):
            try:
                self._on_results(message)
            finally:
                self._replies.wake()
        elif isinstance(message, CallsUnknown):
            self._send_again(message.unknown)
        elif isinstance(message, CallSlot) and self.client.transport.reaches_nodes:
            with self._lock:
                self._slots.told(message)
        elif isinstance(message, OwnerHere):
            self._sync()

    def _on_results(self, message: CallResults) -> None:
        self._taken = 0
        for page in message.pages:
            if page.page.data is not None:
                self._answer(page, page.page.data)
            else:
                self.client.spawn(self._answer_large(page))
        for fault in message.faults:
            self._answer_fault(fault)
        self._received_more()
        self._window.answered(self._taken, self._heard, not self._waiting)
        if self._queue and self._state == "open":
            self._send_queued()
        if message.ended:
            self.client.spawn(self._on_ended(message.ended))
        if self._idle or self._closing:
            self._maybe_idle()

    async def _answer_large(self, page: ResultPage) -> None:
        if not any(index in self._waiting for index in range(page.start, page.stop)):
            return
        try:
            buffer = await self.client.blobs.fetch(page.page)
        except Exception as error:
            for index in range(page.start, page.stop):
                sink = self._take(index)
                if sink is not None:
                    sink.set_exception(error)
            return
        self._answer(page, buffer)
        self._replies.wake()
        self._received_more()
        if self._queue and self._state == "open":
            self._send_queued()
        self._maybe_idle()

    def _answer(self, page: ResultPage, buffer: Any) -> None:
        start, stop, shift = page.start, page.stop, page.page_start
        if stop - start == 1:
            sink = self._take(start)
            if sink is None:
                return
            if type(sink) is Reply:
                self._received.add(start, stop)
                self._replies.add(sink, buffer, start - shift)
                return
            sinks: list[Sink | None] = [sink]
        else:
            sinks = [self._take(index) for index in range(start, stop)]
        self._received.add(start, stop)
        give_out(sinks, buffer, start - shift, self._plain, self.name)

    def _answer_fault(self, fault: FaultPage) -> None:
        sink = self._take(fault.index)
        self._received.add(fault.index, fault.index + 1)
        if sink is not None:
            sink.set_exception(fault_exception(fault, self.name, single=True))

    def _take(self, index: int) -> Sink | None:
        """Whoever waits for the call, once."""
        entry = self._waiting.pop(index, None)
        if entry is None:
            return None
        self._taken += 1
        self._slots.answered(index)
        sink, sent = entry
        sent.left -= 1
        if not sent.left:
            self._sent.pop(sent.page.start, None)
        return sink

    def _send_again(self, unknown: Sequence[tuple[int, int]]) -> None:
        pages: list[InputPage] = []
        size = 0
        for start, sent in list(self._sent.items()):
            if any(low < sent.page.stop and start < high for low, high in unknown):
                pages.append(sent.page)
                size += sent.page.page.size
                if size > MESSAGE_BYTES:
                    self._send(pages)
                    pages, size = [], 0
        if pages:
            self._send(pages)

    def tick(self, now: float) -> None:
        self._window.set_slots(self.client.info.slots)
        self._sync()

    def _sync(self) -> None:
        """Repair: what is waited for is named, so that lost answers come again."""
        if not self._waiting or self._state != "open":
            return
        waiting = IntervalSet((index, index + 1) for index in sorted(self._waiting))
        message = SyncCalls(self.job_id, self.client.id, waiting.intervals(), self._told)
        self.client.transport.send(subjects.job(self.job_id), message)

    def drop(self, reply: Reply | Awaited) -> None:
        """On the loop: nobody waits for this call any more. It is not run, or stopped."""
        if reply.index >= 0 and self._take(reply.index) is not None:
            index = reply.index
            self._received.add(index, index + 1)
            self._received_more()
            message = CancelCalls(self.job_id, ((index, index + 1),))
            self.client.transport.send(subjects.job(self.job_id), message)

    # ------------------------------------------------------------ the end

    async def _on_ended(self, reason: str) -> None:
        error: BaseException = JobError(reason)
        try:
            status = await self.client.ask(subjects.job(self.job_id), GetJob(self.job_id), patience_s=3.0)
            info = status.info
            error = ending(info.state, info.reason or reason, info.reason_kind, self.name) or JobCancelled(reason)
        except Exception:
            pass
        self._fail_all(error)

    def _fail_all(self, error: BaseException) -> None:
        """The standing job is over; the function's next call opens another one."""
        with self._lock:
            if self._state == "ended":
                return
            self._state = "ended"
            self.ended = error
            waiting, self._waiting = self._waiting, {}
            self._sent.clear()
            queue, self._queue = self._queue, deque()
        self.client.attached.pop(self.job_id, None)
        if self._printer is not None:
            self._printer.end(self.client)
        for sink, _ in waiting.values():
            sink.set_exception(error)
        for sink, _, _ in queue:
            if sink.set_running_or_notify_cancel():
                sink.set_exception(error)
        self._maybe_idle()

    def pool_closed(self, error: BaseException) -> None:
        self._fail_all(error)

    def _abort(self) -> None:
        was_open = self._state == "open"
        self._fail_all(JobCancelled(f"{self.name} was aborted."))
        if was_open:
            self.client.cancel_soon(self.job_id, "aborted")

    def _notify_idle(self, idle: Future[None]) -> None:
        self._idle.append(idle)
        self._maybe_idle()

    def _begin_close(self) -> None:
        self._closing = True
        self._maybe_idle()

    def settled(self) -> bool:
        return not (self._waiting or self._queue or self._under_way)

    def _maybe_idle(self) -> None:
        if not self.settled():
            return
        waiters, self._idle = self._idle, []
        for idle in waiters:
            idle.set_result(None)
        if self._closing and self._state in ("open", "new"):
            with self._lock:
                if not self.settled():
                    return  # a call came just now, and is answered first
                was_open, self._state = self._state == "open", "ended"
                self.ended = JobCancelled(f"{self.name} takes no more calls.")
            self.client.attached.pop(self.job_id, None)
            if self._printer is not None:
                self._printer.end(self.client)
            if was_open:
                self.client.cancel_soon(self.job_id, "no more calls", settled=True)
