"""Runs the tasks of one order.

The loop costs two accesses of the shared map a task; time is looked at between chunks of about 7 ms only.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from fallow.wire.code import Loaded
from fallow.wire.page import Partial, Unreadable, decode_items, decode_page
from fallow.worker import orders
from fallow.worker.block import BLOCK_TASKS, Block
from fallow.worker.failures import make_failure
from fallow.worker.fold import Fold
from fallow.worker.orders import BEGUN, ENCODING, INDEX, LIMIT, PHASE, RUNNING, UNPICKLING
from fallow.worker.outbox import FLOW_S, HELD_BYTES, LONGEST_INTERVAL_S, Outbox

CHUNK_S = 0.0075
CHUNK_GROWTH = 8
LEAST_CHUNK_IN_BLOCKS = 64 * BLOCK_TASKS
"""Tasks so short that a chunk has this many run in blocks, of about 0.1 ms each."""
MOST_CHUNK = LEAST_CHUNK_IN_BLOCKS
"""The outbox looks between chunks whether there are enough results to be encoded."""
WAIT_HERE_S = 1.0
"""Back-offs up to this are waited for in the worker; longer ones go back to the coordinator."""
RETRY_LATER_LIMIT = 256
"""Tasks of one order that go back with a delay; more of them wait here."""
_NEARLY_DONE_S = 0.15
"""An order that ends so soon, or within the interval between hand-ins, hands in all at its end."""


class Runner:
    """Runs one order. `chunk`: tasks of the first chunk; afterwards what the next order of the job may begin with."""

    def __init__(
        self,
        order: orders.Run,
        loaded: Loaded,
        words: memoryview,
        outbox: Outbox,
        block: Block,
        chunk: int = 1,
    ) -> None:
        self._order = order
        self._loaded = loaded
        self._words = words
        self._outbox = outbox
        self._block = block
        self._fold = Fold(loaded.reduce) if order.reduce and loaded.reduce is not None else None
        self._attempts: dict[int, int] = {}
        self._again: list[int] = []
        self._inputs: dict[int, Any] = {}
        self._began = self._deadline = 0.0
        self._given_back: tuple[tuple[int, int], ...] = ()
        self._limited = False
        self.chunk = chunk

    def run(self) -> None:
        """Run the range, until it ends, or the budget, or at the limit."""
        self._began = time.perf_counter()
        self._deadline = self._began + self._order.budget_s
        for page in self._order.pages:
            first = max(self._order.start, page.start)
            last = min(self._order.stop, page.stop)
            if first < last and not self._run_page(page, first, last):
                break

    # ------------------------------------------------ the range

    def _run_page(self, page: orders.OrderPage, first: int, last: int) -> bool:
        """False: stop here."""
        words = self._words
        if first >= words[LIMIT]:
            self._limited = True
            return False
        words[INDEX] = first
        try:
            buffer = _open_page(page)
        except OSError as error:  # not the task's fault: whoever runs it next gets the page anew
            print(f"the inputs of tasks {first} to {last - 1} cannot be read on this node: {error}", file=sys.stderr)
            self._give_back(first)
            return False
        try:
            if not page.singly and page.stop - page.start > 1:
                words[PHASE] = UNPICKLING
            whole = _decode_singly(buffer) if page.singly else decode_items(buffer)
            words[PHASE] = RUNNING
            items = whole[first - page.start : last - page.start]
            if len(items) != last - first:
                raise ValueError(f"the inputs end at task {first + len(items)}, before {last}")
        except BaseException as error:
            words[PHASE] = RUNNING
            failure = make_failure(error)
            for index in range(first, last):
                self._outbox.fail(index, failure)
            return True
        if isinstance(whole, Partial):
            return self._run_readable(items, first, last)
        return self._run_singly(items, first, last) if page.singly else self._run_items(items, first, last)

    def _run_singly(self, items: Sequence[Any], first: int, last: int) -> bool:
        """As _run_items, where each item is unpickled as its task begins: should it end the process, that task is to
        blame."""
        from fallow.wire.apart import Item

        words = self._words
        for index in range(first, last):
            if index >= words[LIMIT]:
                self._limited = True
                return False
            words[INDEX] = index
            item = items[index - first]
            try:
                item = item.make() if type(item) is Item else item
            except BaseException as error:
                item = Unreadable(error)
            if not self._run_readable([item], index, index + 1):
                return False
        return True

    def _run_readable(self, items: Sequence[Any], first: int, last: int) -> bool:
        """As _run_items, where some items are Unreadable: their tasks fail."""
        at = 0
        for offset, item in enumerate(items):
            if type(item) is not Unreadable:
                continue
            index = first + offset
            if offset > at and not self._run_items(items[at:offset], first + at, index):
                return False
            if index >= self._words[LIMIT]:
                self._limited = True
                return False
            self._words[INDEX] = index
            item.error.add_note("Raised on the node, where the task's input was unpickled.")
            self._outbox.fail(index, make_failure(item.error))
            at = offset + 1
        return at == len(items) or self._run_items(items[at:], first + at, last)

    def _run_items(self, items: Sequence[Any], first: int, last: int) -> bool:
        outbox = self._outbox
        rest = iter(items)
        index = first
        while index < last:
            count = min(self.chunk, last - index)
            before = outbox.chunk_begins()
            if before >= self._deadline and index > self._order.start:
                outbox.chunk_ends()
                self._give_back(index)
                return False
            if self.chunk < LEAST_CHUNK_IN_BLOCKS:
                reached = self._run_chunk(islice(rest, count), items, first, index)
            else:
                reached = self._run_blocks(rest, items, first, index, index + count)
            now = outbox.chunk_ends()
            if self._limited:
                return False
            if reached < index + count:  # a block was cut short
                rest = iter(items[reached - first :])
            index = reached
            self._adapt(now - before)
            if self._fold is not None:
                self._fold.add(outbox.drain())
            else:
                ran_s = max(now - before, (now - self._began) * count / (index - self._order.start))
                self._hand_in_some(now, (self._order.stop - index) * ran_s / count)
        return True

    def _hand_in_some(self, now: float, left_s: float) -> None:
        """Between two chunks: `left_s` is what the rest of the order is thought to take."""
        outbox = self._outbox
        if outbox.has_many():
            self._words[ENCODING] = outbox.first_held()
            outbox.press()
            self._words[ENCODING] = -1
        if outbox.due(now):
            if left_s > max(_NEARLY_DONE_S, outbox.interval_s):
                outbox.hand_in()
            else:
                outbox.postpone(min(2 * left_s, LONGEST_INTERVAL_S) + CHUNK_S)
        elif outbox.flows(now) and left_s > FLOW_S:
            outbox.let_flow()

    def _run_chunk(self, chunk: Iterator[Any], items: Sequence[Any], first: int, index: int) -> int:
        """Run a chunk that begins at task `index`; returns the index after it. Sets _limited at the limit."""
        words = self._words
        call = self._loaded.call
        outbox = self._outbox
        while True:
            append = outbox.open(index).append
            try:
                for item in chunk:
                    words[INDEX] = index
                    if index >= words[LIMIT]:
                        words[INDEX] = index - 1 if index > self._order.start else -1
                        self._limited = True
                        return index
                    append(call(item))
                    index += 1
                return index
            except BaseException as error:
                self._failed(index, items[index - first], error)
                index += 1

    def _failed(self, index: int, item: Any, error: BaseException) -> None:
        if self._may_retry(index, error):
            self._again.append(index)
            self._inputs[index] = item
            error.__traceback__ = None
        else:
            self._outbox.fail(index, make_failure(error))

    def _run_blocks(self, rest: Iterator[Any], items: Sequence[Any], first: int, index: int, stop: int) -> int:
        """As _run_chunk, for tasks [index, stop) that seem to be very short. May stop early."""
        words, claim, outbox = self._words, self._block.claim, self._outbox
        call = self._loaded.call
        append = outbox.open(index).append
        while index < stop:
            block = list(islice(rest, min(BLOCK_TASKS, stop - index)))
            count = len(block)
            reach = index + count
            iterator = claim(index, block)
            if reach > words[LIMIT]:
                self._release(index)
                index = self._run_chunk(iterator, items, first, index)
                if self._limited:
                    return index
                append = outbox.open(index).append
                continue
            try:
                for item in iterator:
                    append(call(item))
            except BaseException as error:
                self._go_on(iterator, items, first, error)
                append = outbox.open(outbox.position()).append
            if len(block) < count:  # it was cut short after the task in progress
                index = max(index, outbox.position())
                break
            index = reach
        self._release(index)
        return index

    def _go_on(self, iterator: Iterator[Any], items: Sequence[Any], first: int, error: BaseException) -> None:
        """The rest of a block in which the task in progress has raised."""
        call = self._loaded.call
        outbox = self._outbox
        while True:
            index = self._block.in_progress()
            self._failed(index, items[index - first], error)
            append = outbox.open(index + 1).append
            try:
                for item in iterator:
                    append(call(item))
                return
            except BaseException as raised:
                error = raised

    def _release(self, index: int) -> None:
        self._block.release(index - 1 if index > self._order.start else -1)

    def _adapt(self, took: float) -> None:
        wanted = self.chunk * CHUNK_S / max(took, 1e-7)
        most = min(MOST_CHUNK, HELD_BYTES // max(1, self._outbox.item_bytes))
        self.chunk = max(1, min(int(wanted), self.chunk * CHUNK_GROWTH, most))

    def _give_back(self, index: int) -> None:
        limit = min(self._order.stop, self._words[LIMIT])
        self._words[LIMIT] = index
        if index < limit:
            self._given_back = ((index, limit),)

    # ------------------------------------------------ retries

    def _may_retry(self, index: int, error: BaseException) -> bool:
        attempts = self._attempts.get(index, self._order.attempt)
        if attempts >= self._order.retry.retries or not isinstance(error, self._loaded.retry_on):
            return False
        self._attempts[index] = attempts + 1
        return True

    def retry(self) -> list[tuple[int, int, float]]:
        """Run again what raised, round by round. Returns what is to be retried later: (index, attempt, delay)."""
        later: list[tuple[int, int, float]] = []
        failed_at = time.perf_counter()
        if self._again and self._fold is None and len(self._again) < self._order.stop - self._order.start:
            self._outbox.hand_in()
        while self._again:
            round_, self._again = self._again, []
            for index in round_:
                attempt = self._attempts[index]
                delay = self._order.retry.delay_s(attempt) - (time.perf_counter() - failed_at)
                late = time.perf_counter() + max(0.0, delay) >= self._deadline
                if (delay > WAIT_HERE_S or (late and delay > 0)) and len(later) < RETRY_LATER_LIMIT:
                    later.append((index, attempt, max(0.0, delay)))
                    continue
                if delay > 0:
                    time.sleep(delay)
                self._retry_one(index)
            failed_at = time.perf_counter()
        return later

    def _retry_one(self, index: int) -> None:
        words, outbox = self._words, self._outbox
        if index >= words[LIMIT]:
            return  # cut off, and given back by the agent
        words[INDEX] = index
        words[BEGUN] += 1
        values = outbox.open(index)
        outbox.chunk_begins()
        try:
            values.append(self._loaded.call(self._inputs[index]))
        except BaseException as error:
            self._failed(index, self._inputs[index], error)
        outbox.chunk_ends()
        if self._fold is not None:
            self._fold.add(outbox.drain())

    # ------------------------------------------------ the end

    def end(self, later: list[tuple[int, int, float]]) -> None:
        """Hand in the rest."""
        words = self._words
        try:
            if self._fold is None:
                words[ENCODING] = self._outbox.first_held()
                self._outbox.end(self._given_back, tuple(later))
                return
            self._fold.add(self._outbox.drain())
            pages = []
            for run in self._fold.finish():
                words[ENCODING] = run.start
                pages += self._outbox.writer.write_reduced(run.start, run.stop, run.value)
            for index, failure in sorted(self._fold.failures.items()):
                pages += self._outbox.writer.write(index, [None], {index: failure})
            self._outbox.end(self._given_back, tuple(later), pages)
        finally:
            words[ENCODING] = -1


def _decode_singly(buffer: bytes | mmap.mmap) -> Sequence[Any]:
    """The items of a page, those that a pickle holds each still to be unpickled (see wire.apart)."""
    from fallow.wire.apart import NotTakenApart, take_apart

    try:
        return decode_page(buffer, load=take_apart)
    except NotTakenApart:
        return decode_items(buffer)


def _open_page(page: orders.OrderPage) -> bytes | mmap.mmap:
    if page.data is not None:
        return page.data
    descriptor = os.open(page.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Copy on write: tasks may change arrays that they got, and nobody else sees it.
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)
