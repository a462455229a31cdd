"""Results of one order, from the task loop to the agent. The loop appends to plain lists without a lock; the main
thread, or the helper thread while a long task runs, takes what is there and hands it in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from fallow.model.errors import UnserialisableResult
from fallow.wire.page import Failure
from fallow.worker import orders
from fallow.worker.pages import PageWriter, rough_bytes

FIRST_HAND_IN_S = 0.02
LONGEST_INTERVAL_S = 1.0
HELP_AFTER_S = 0.05
"""The helper leaves it to the main thread for so long, or for half an interval: that costs less."""
HELD_BYTES = 8 * 1024 * 1024
"""Results that are thought to be larger than this together are handed in at once."""

PRESSED_TASKS = 32 * 1024
"""So many results are encoded at once. Where they are many small objects, what is let go soon costs half: it fits into
the processor's caches, and its memory is used again instead of being given back to the system."""
PRESSED_EACH = 8 * 1024
"""How many more results there may be from one look to the next."""
FLOW_S = 0.004
FLOW_MOST_S = 0.05
"""Encoded results are handed in as often, at first and in the end, while tasks are so short that results are many: the
reader works beside the workers."""

LEAST_ITEM_BYTES = 32
"""What any result takes at least while it is held: small ones are many."""

REPORT_BYTES = 2 * 1024 * 1024
"""Inline bytes of one report; more pages make more reports."""


class Piece:
    """Results of consecutive tasks from `start` on."""

    __slots__ = ("failures", "start", "values")

    def __init__(self, start: int) -> None:
        self.start = start
        self.values: list[Any] = []
        self.failures: dict[int, Failure] = {}

    @property
    def stop(self) -> int:
        return self.start + len(self.values)


class Outbox:
    """`early`: results may be handed in before the order ends, first after `interval_s`."""

    def __init__(
        self,
        order: orders.Run,
        send: Callable[[orders.FromWorker], None],
        writer: PageWriter,
        early: bool,
        clock: Callable[[], float] = time.perf_counter,
        interval_s: float = FIRST_HAND_IN_S,
        flow_s: float = FLOW_S,
    ) -> None:
        self._order = order
        self._send = send
        self.writer = writer
        self._early = early
        self._clock = clock
        self._lock = threading.Lock()
        self._closed: list[Piece] = []
        self._open: Piece | None = None
        self.interval_s = interval_s
        """Between early hand-ins; the job's next order goes on with it."""
        self._next = clock() + interval_s
        self.flow_s = flow_s
        """The same for results that are many."""
        self._flows_at = self._next - interval_s + flow_s
        self._pressed: list[orders.WrittenPage] = []
        self._ended = False
        self._ran_s = 0.0
        self._running_since: float | None = None
        self._cpu_at = time.process_time()
        self.item_bytes = 0
        """A guess, from the last result."""

    # ------------------------------------------------ the task loop

    def open(self, index: int) -> list[Any]:
        """The list to append the results of `index` and what follows to."""
        piece = self._open
        if piece is None or piece.stop != index:
            with self._lock:
                if piece is not None and piece.values:
                    self._closed.append(piece)
                piece = self._open = Piece(index)
        return piece.values

    def position(self) -> int:
        """The task after the last one whose result came."""
        with self._lock:
            return self._open.stop if self._open is not None else -1

    def fail(self, index: int, failure: Failure) -> None:
        """Task `index` (the next of the open piece) failed for good."""
        self.open(index)
        piece = self._open
        assert piece is not None
        with self._lock:
            piece.failures[index] = failure
            piece.values.append(None)

    def chunk_begins(self) -> float:
        """The loop is about to run tasks. Returns the time."""
        with self._lock:
            self._running_since = now = self._clock()
        return now

    def chunk_ends(self) -> float:
        """Returns the time. Hands in what became too large to hold."""
        with self._lock:
            now = self._clock()
            began, self._running_since = self._running_since, None
            self._ran_s += now - began if began is not None else 0.0
        piece = self._open
        if self._early and piece is not None and piece.values:
            count = len(piece.values)
            self.item_bytes = max(LEAST_ITEM_BYTES, rough_bytes(piece.values[-1]))
            if count * self.item_bytes > HELD_BYTES:
                self.hand_in()
        return now

    def has_many(self) -> bool:
        """Say whether it is time to encode what is there (main thread)."""
        count = len(self._open.values) if self._early and self._open is not None else 0
        return count >= PRESSED_EACH and count + PRESSED_EACH > min(PRESSED_TASKS, self.writer.page_tasks)

    def press(self) -> None:
        """Encode what is there (main thread), to be handed in later."""
        with self._lock:
            pieces = self._take()
            self._pressed += self._write(pieces, strict=False)

    def flows(self, now: float) -> bool:
        """Say whether encoded results may be handed in while the order goes on."""
        return bool(self._pressed) and now >= self._flows_at

    def let_flow(self) -> None:
        """Hand in what is encoded, and the little that is not (main thread)."""
        with self._lock:
            self.flow_s = min(FLOW_MOST_S, self.flow_s * 1.5)
            self._send_all(strict=False)

    def due(self, now: float) -> bool:
        """Say whether it is time to hand in early."""
        return self._early and now >= self._next

    def first_held(self) -> int:
        """Index of the first result that is not handed in; -1 if there is none."""
        with self._lock:
            held = [piece.start for piece in (*self._closed, self._open) if piece is not None and piece.values]
        return min(held, default=-1)

    def postpone(self, delay_s: float) -> None:
        """The order is nearly done: let the last report have what an early one would bring."""
        self._next = self._clock() + delay_s

    def drain(self) -> list[Piece]:
        """Take all pieces away (reduced jobs fold them)."""
        with self._lock:
            return self._take()

    # ------------------------------------------------ handing in

    def hand_in(self) -> None:
        """Send what is done (main thread)."""
        with self._lock:
            self._hand_in(strict=False)

    def help(self) -> None:
        """Helper thread: send what is done if the main thread has been in one task for long. Tasks may be changing
        what earlier ones returned: what cannot be encoded now is left for the main thread."""
        patience_s = max(HELP_AFTER_S, self.interval_s / 2)
        if not self.due(self._clock() - patience_s) or not self._lock.acquire(blocking=False):
            return
        try:
            if not self._ended:
                self._hand_in(strict=True)
        finally:
            self._lock.release()

    def hand_in_now(self) -> None:
        """Helper thread: send all that is done, as `help` does, without waiting for its time."""
        if not self._early or not self._lock.acquire(blocking=False):
            return
        try:
            if not self._ended:
                self._hand_in(strict=True)
        finally:
            self._lock.release()

    def end(
        self,
        give_back: tuple[tuple[int, int], ...],
        retry_later: tuple[tuple[int, int, float], ...],
        reduced: list[orders.WrittenPage] | None = None,
    ) -> None:
        """Send the last report of the order."""
        with self._lock:
            self._ended = True
            pages = reduced if reduced is not None else self._pressed + self._write(self._take(), strict=False)
            self._report(pages, give_back, retry_later, ended=True)

    def _hand_in(self, strict: bool) -> None:
        self.interval_s = min(LONGEST_INTERVAL_S, self.interval_s * 2)
        self._send_all(strict)

    def _send_all(self, strict: bool) -> None:
        now = self._clock()
        self._next = now + self.interval_s
        self._flows_at = now + self.flow_s
        pieces = self._take()
        pages, self._pressed = self._pressed, []
        try:
            pages += self._write(pieces, strict)
        except (UnserialisableResult, RuntimeError):
            self._put_back(pieces)
        if pages:
            self._report(pages, (), (), ended=False)

    def _take(self) -> list[Piece]:
        pieces, self._closed = self._closed, []
        piece = self._open
        if piece is not None and piece.values:
            taken = Piece(piece.start)
            count = len(piece.values)
            taken.values = piece.values[:count]
            del piece.values[:count]  # the loop holds the list and only appends
            piece.start += count
            taken.failures, piece.failures = piece.failures, {}
            pieces.append(taken)
        return pieces

    def _put_back(self, pieces: list[Piece]) -> None:
        self._closed = pieces + self._closed

    def _write(self, pieces: list[Piece], strict: bool) -> list[orders.WrittenPage]:
        pages: list[orders.WrittenPage] = []
        for piece in pieces:
            pages += self.writer.write(piece.start, piece.values, piece.failures, strict)
        return pages

    def _report(
        self,
        pages: list[orders.WrittenPage],
        give_back: tuple[tuple[int, int], ...],
        retry_later: tuple[tuple[int, int, float], ...],
        ended: bool,
    ) -> None:
        ran, self._ran_s = self._ran_s, 0.0
        if self._running_since is not None:
            now = self._clock()
            ran += now - self._running_since
            self._running_since = now
        cpu = time.process_time()
        used, self._cpu_at = cpu - self._cpu_at, cpu
        *early, last = _batches(pages)
        token, reduced = self._order.token, self._order.reduce
        for batch in early:
            self._send(orders.Report(token, batch, reduced=reduced))
        no_room, self.writer.no_room = tuple(self.writer.no_room), []
        self._send(orders.Report(token, last, give_back, retry_later, ended, ran, max(0.0, used), reduced, no_room))


def _batches(pages: list[orders.WrittenPage]) -> list[tuple[orders.WrittenPage, ...]]:
    """Pages in groups of at most REPORT_BYTES inline bytes; at least one group, which may be empty."""
    batches: list[list[orders.WrittenPage]] = [[]]
    left = REPORT_BYTES
    for page in pages:
        size = len(page.data) if page.data is not None else 0
        if batches[-1] and size > left:
            batches.append([])
            left = REPORT_BYTES
        batches[-1].append(page)
        left -= size
    return [tuple(batch) for batch in batches]
