"""One map job as its client sees it: inputs go out within a window, results are fetched by index."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fallow.model.errors import FallowError, PoolRefused, PoolUnreachable
from fallow.model.ids import JobId, new_id
from fallow.model.job import INLINE_LIMIT_BYTES, Blob, JobInfo, JobSpec, Purpose
from fallow.sdk.asking import RETRIED
from fallow.sdk.client import PATIENCE_S
from fallow.sdk.failures import ending
from fallow.sdk.paging import Window
from fallow.wire import subjects
from fallow.wire.blobs import hash_segments
from fallow.wire.messages import (
    AppendInputs,
    FaultPage,
    FetchResults,
    InputPage,
    OwnerHere,
    ResultPage,
    SubmitJob,
)

if TYPE_CHECKING:
    from fallow.sdk.client import Client
    from fallow.sdk.output import OutputPrinter
    from fallow.sdk.progress import Progress

MESSAGE_BYTES = 2 << 20
"""Input pages sent in one message."""
FETCH_BYTES = 1 << 20
FETCH_WAIT_S = 1.5
"""How long the pool may hold a request for results that are not there yet."""
FETCH_LOST_S = 1.5
"""How long after that the request counts as lost, with the coordinator that held it. Grows where answers are slow."""
FETCH_LOST_MOST_S = 30.0
PARALLEL_FETCHES = 4
SUBMIT_PATIENCE_S = PATIENCE_S
"""How long a job is offered to a pool that does not answer, or is overloaded."""


class FeedStopped(Exception):
    """The job has ended, so that no more inputs are wanted."""


class Part(NamedTuple):
    """Results [start, stop). Page: item k of the decoded buffer belongs to task page_start + k."""

    start: int
    stop: int
    page_start: int
    buffer: Any
    failed_count: int
    fault: FaultPage | None


class Batch(NamedTuple):
    parts: list[Part]
    last: bool
    """Nothing follows; `error` is then what the job as a whole came to."""
    error: BaseException | None


def _may_be_held(error: BaseException) -> bool:
    """Whether a pool that did not take the job may hold it all the same, and run it once its store is back. The other
    refusals are final."""
    if isinstance(error, PoolRefused):
        return error.kind in RETRIED
    return isinstance(error, PoolUnreachable) or not isinstance(error, FallowError)


def new_job_id() -> JobId:
    return JobId(new_id("job", os.urandom))


def page_blob(
    client: Client, segments: list[Any], durable: bool = True, goes_on: Callable[[], bool] = lambda: False
) -> Blob:
    """Segments as a Blob: inline where small, else put into the blob store (blocks; not for the loop's thread). Waits
    for room there, as long as `goes_on` says, or for a while."""
    size = sum(map(len, segments))
    if size <= INLINE_LIMIT_BYTES:
        digest, size = hash_segments(segments)
        return Blob(digest, size, segments[0] if len(segments) == 1 else b"".join(segments))
    from fallow.sdk.room import put_blocking

    files = client.blobs.local_files

    def put() -> Blob:
        if files is not None:  # here and now: no other thread is woken for it
            return Blob(*files.write(segments, durable, Purpose.INPUTS))
        blob: Blob = client.submit_blocking(
            client.blobs.put_segments(segments, durable=durable, purpose=Purpose.INPUTS)
        )
        return blob

    return put_blocking(client, put, goes_on)


class MapJob:
    """The first part is for the callers' threads, the second for the loop."""

    def __init__(self, client: Client, spec: JobSpec) -> None:
        self.client = client
        self.spec = spec
        self.job_id = spec.job_id
        self.epoch = 0
        self.total = -1
        self.info: JobInfo | None = None
        self.input_error: BaseException | None = None
        self.closed = False
        self.progress: Progress | None = None
        self.printer: OutputPrinter | None = None
        self._lost_s = FETCH_LOST_S
        self._window = Window()
        self._room = threading.Condition()
        self._outgoing: deque[InputPage] = deque()
        self._unsent: deque[InputPage] = deque()
        self._appending = False
        self._end: tuple[int, str] | None = None
        self._feed_error: BaseException | None = None
        self._fed: Future[None] = Future()

    def describe(self) -> str:
        return f"{self.spec.name} ({self.job_id})"

    def submit(self, pages: Sequence[InputPage] = (), total: int = -1) -> None:
        """Hand the job to the pool, with its first inputs; with `total` these are all. Raises for a refusal."""
        for page in pages:
            self._window.submitted(page.stop - page.start, page.page.size)
        self.total = total
        self.client.ready()
        self.client.submit_blocking(self._submit(tuple(pages), total))
        if total >= 0:
            self._fed.set_result(None)

    def put(self, count: int, segments: list[Any]) -> None:
        """Append a page of `count` inputs; waits while the window is full. Raises FeedStopped."""
        size = sum(map(len, segments))
        with self._room:
            while not self.closed and not self._window.admits(count, size):
                self._room.wait()
        # Only now: what lies there unnamed for long counts as forgotten.
        blob = page_blob(self.client, segments, self.spec.detached, self._goes_on)
        with self._room:
            if self.closed:
                raise FeedStopped
            start = self._window.sent
            self._window.submitted(count, blob.size)
            self._outgoing.append(InputPage(start, start + count, blob))
        self.client.later(self._append)

    def _goes_on(self) -> bool:
        """While inputs wait for room: tasks are out, and make room once their results are read. Raises FeedStopped."""
        if self.closed:
            raise FeedStopped
        return self._window.sent > self._window.received

    def end_inputs(self, error: BaseException | None = None) -> None:
        """No more inputs; `error`: the caller's iterator raised it, and it comes out after the last result."""
        self.input_error = error
        self._end = (self._window.sent, f"{type(error).__name__}: {error}" if error else "")
        self.client.later(self._append)

    def wait_fed(self) -> None:
        """Wait until all inputs are durable in the pool."""
        self._fed.result()

    def received(self, count: int) -> None:
        """Results of `count` more tasks are with the caller: there is room for as many inputs."""
        with self._room:
            self._window.answered(count)
            self._room.notify_all()

    def close(self, *, cancel: bool, reason: str = "its results are no longer wanted") -> None:
        """The caller is done with it. From any thread, also from a finaliser: does not wait."""
        with contextlib.suppress(Exception):
            self.client.later(self._close, cancel, reason)

    # ------------------------------------------------------------ on the loop

    async def _submit(self, pages: tuple[InputPage, ...], total: int) -> None:
        if not self.spec.detached:
            self.client.attached[self.job_id] = self
        asked = False
        try:
            if self.printer is not None:
                await self.printer.follow(self.client)
            if self.spec.detached:
                await self.client.sync_blobs()
            asked = True
            reply = await self.client.ask(
                subjects.POOL, SubmitJob(self.spec, pages, total), patience_s=SUBMIT_PATIENCE_S
            )
            self.epoch = max(self.epoch, reply.epoch)
        except BaseException as error:
            self._close(asked and _may_be_held(error), "its script gave up submitting it")
            raise

    def _append(self) -> None:
        if not self._appending and not self.closed:
            self._appending = True
            self.client.spawn(self._append_all())

    async def _append_all(self) -> None:
        try:
            while not self.closed and (self._outgoing or self._unsent or (self._end and not self._fed.done())):
                await self._append_some()
        except FallowError as error:
            self._feed_failed(error)
        finally:
            self._appending = False

    async def _append_some(self) -> None:
        size = sum(page.page.size if page.page.data is not None else 100 for page in self._unsent)
        while self._outgoing and size < MESSAGE_BYTES:
            page = self._outgoing.popleft()
            size += page.page.size if page.page.data is not None else 100
            self._unsent.append(page)
        end = self._end if self._end and not self._outgoing else None
        if self.spec.detached:
            await self.client.sync_blobs()
        message = AppendInputs(self.job_id, tuple(self._unsent), *(end or ()))
        reply = await self.client.ask(subjects.job(self.job_id), message)
        self.epoch = max(self.epoch, reply.epoch)
        while self._unsent and self._unsent[0].stop <= reply.cursor:
            self._unsent.popleft()
        if reply.window_bytes > 0:
            with self._room:
                self._window.size = reply.window_bytes
                self._room.notify_all()
        if end and not self._unsent and not self._fed.done():
            self.total = end[0]
            self._fed.set_result(None)

    def _feed_failed(self, error: BaseException) -> None:
        """The pool takes no more: whoever reads results gets this error, unless the job's own end says more."""
        self._feed_error = error
        if not self._fed.done():
            self._fed.set_exception(error)
        with self._room:
            self.closed = True
            self._room.notify_all()

    async def fetch(self, cursor: int, *, ordered: bool, consumed: int, stop: int = -1) -> tuple[Batch, int]:
        """The next results from `cursor` on, and where to go on."""
        message = FetchResults(self.job_id, cursor, ordered, consumed, FETCH_BYTES, FETCH_WAIT_S, stop)
        while True:
            began = time.monotonic()
            reply = await self.client.ask(subjects.job(self.job_id), message, timeout_s=FETCH_WAIT_S + self._lost_s)
            if reply.epoch < self.epoch:
                continue  # from an owner that does not know yet that it is none
            took = time.monotonic() - began - FETCH_WAIT_S
            if reply.epoch == self.epoch and took > self._lost_s:
                self._lost_s = min(took * 1.2, FETCH_LOST_MOST_S)
            self.epoch = reply.epoch
            if reply.info is not None:
                self.info = reply.info
            # Where every result is here there is no need to ask whether more will come.
            complete = reply.exhausted or (ordered and 0 <= reply.total <= reply.next_cursor)
            if reply.pages or reply.faults or complete or 0 <= stop <= reply.next_cursor:
                break
            if self._feed_error is not None and reply.next_cursor == cursor:
                raise self._feed_error
            if reply.next_cursor != cursor:
                cursor = reply.next_cursor
                message = msgspec.structs.replace(message, cursor=cursor)
        if reply.exhausted and ordered and stop < 0 and reply.next_cursor < reply.total and reply.state == "succeeded":
            raise PoolRefused(
                f"the results of {self.describe()} from {reply.next_cursor} on are gone: this script was not heard of "
                "for a minute after they were there. Detached jobs keep theirs.",
                "ended",
            )
        parts = await self._parts(reply.pages, reply.faults)
        if stop >= 0:
            parts = [part._replace(stop=min(part.stop, stop)) for part in parts if part.start < stop]
        last = complete or 0 <= stop <= reply.next_cursor
        error: BaseException | None = None
        if last:
            error = ending(reply.state, reply.reason, reply.reason_kind, self.describe()) or self.input_error
        return Batch(parts, last, error), reply.next_cursor

    def acknowledge(self, cursor: int, ordered: bool) -> None:
        """Everything below the cursor is here: the pool may forget it. Nobody waits for an answer."""
        message = FetchResults(self.job_id, cursor, ordered, cursor, FETCH_BYTES, 0.0)
        self.client.transport.send(subjects.job(self.job_id), message)

    async def _parts(self, pages: Sequence[ResultPage], faults: Sequence[FaultPage]) -> list[Part]:
        import asyncio

        # No task for each of what is at hand.
        buffers: list[Any] = [self.client.blobs.at_hand(page.page) for page in pages]
        missing = [at for at, data in enumerate(buffers) if data is None]
        for low in range(0, len(missing), PARALLEL_FETCHES):
            some = missing[low : low + PARALLEL_FETCHES]
            fetched = await asyncio.gather(*(self.client.blobs.fetch(pages[at].page) for at in some))
            for at, buffer in zip(some, fetched, strict=True):
                buffers[at] = buffer
        parts = [
            Part(page.start, page.stop, page.page_start, buffer, page.failed_count, None)
            for page, buffer in zip(pages, buffers, strict=True)
        ]
        parts += [Part(fault.index, fault.index + 1, fault.index, None, 1, fault) for fault in faults]
        return parts

    def tick(self, now: float) -> None:
        """Nothing to repair by time: every request is repeated until it is answered."""

    def message(self, message: Any) -> None:
        """The job has a new owner, or one that was cut off is back: what waits for its answer is asked again."""
        if isinstance(message, OwnerHere) and message.epoch >= self.epoch:
            self.epoch = message.epoch
            self.client.transport.repeat(subjects.job(self.job_id))

    def settled(self) -> bool:
        return False  # what is attached still has a reader

    def pool_closed(self, error: BaseException) -> None:
        self._feed_failed(error)
        if self.progress is not None:
            self.progress.close()

    def _close(self, cancel: bool, reason: str) -> None:
        self.client.attached.pop(self.job_id, None)
        with self._room:
            self.closed = True
            self._room.notify_all()
        if not self._fed.done():
            self._fed.set_exception(FeedStopped())
        if self.printer is not None:
            self.printer.end(self.client)
        if self.progress is not None:
            self.progress.close()
        if cancel:
            self.client.cancel_soon(self.job_id, reason)
