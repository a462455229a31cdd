"""Drawing a caller's inputs, whatever iterable they come from, and sending them in pages that grow."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from fallow.model.errors import SettingError, UnserialisableInput
from fallow.sdk.mapjob import FeedStopped, MapJob
from fallow.sdk.paging import RANGE_PAGE_TASKS, WINDOW_TASKS, next_count, range_cuts
from fallow.wire.messages import InputPage
from fallow.wire.page import encode_inputs

if TYPE_CHECKING:
    from fallow.sdk.client import Client

STALL_S = 0.05
"""Inputs drawn so long ago are sent though their page is not full: the iterable may be waiting for their results."""
FIRST_ITEMS = 1
WHOLE_ITEMS_LIMIT = 64
WHOLE_SMALL_ITEMS_LIMIT = 4096
WHOLE_BYTES = 64 * 1024
"""A list of at most so many items is sent with the job itself, if it is small; a longer one if its first item says
that all are: nothing large is encoded in vain."""


def check_iterable(inputs: object, what: str) -> Iterable[Any]:
    if isinstance(inputs, (str, bytes)):
        raise SettingError(f"{what}: {inputs!r} is text, which would be taken letter by letter. Give a list of inputs.")
    if not isinstance(inputs, Iterable) and not hasattr(inputs, "__getitem__"):
        raise SettingError(
            f"{what}: {inputs!r} cannot be iterated over. Give a list, a range or a generator of inputs."
        )
    return inputs  # type: ignore[return-value]


def length_hint(inputs: object) -> int:
    """How many inputs there are, where that is known, else -1."""
    try:
        return len(inputs)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return -1


def first_pages(client: Client, inputs: Iterable[Any], page_items: int) -> tuple[list[InputPage], int]:
    """Pages that travel with the job itself, and the total where they are all: short lists, and any `range` that
    the window admits. Never draws from an iterator."""
    from fallow.sdk.mapjob import page_blob

    if page_items:
        return [], -1
    if type(inputs) is range and len(inputs) <= WINDOW_TASKS:
        cuts = range_cuts(0, len(inputs))
        return [InputPage(a, b, page_blob(client, encode_inputs(inputs[a:b]))) for a, b in cuts], len(inputs)
    if type(inputs) in (list, tuple) and len(inputs) <= WHOLE_SMALL_ITEMS_LIMIT:  # type: ignore[arg-type]
        items: Sequence[Any] = inputs  # type: ignore[assignment]
        try:
            if len(items) > WHOLE_ITEMS_LIMIT and not _are_small(items):
                return [], -1
            segments = encode_inputs(items)
        except UnserialisableInput:
            return [], -1  # the feeder sends what comes before it
        if sum(map(len, segments)) <= WHOLE_BYTES:
            return ([InputPage(0, len(items), page_blob(client, segments))] if items else []), len(items)
    return [], -1


def _are_small(items: Sequence[Any]) -> bool:
    """By the first and the last: whether all together may be sent with the job."""
    return sum(map(len, encode_inputs([items[0], items[-1]]))) * len(items) <= 4 * WHOLE_BYTES


class Feeder:
    """Draws in a thread of its own, so that results come out while the next inputs are waited for."""

    def __init__(self, job: MapJob, inputs: Iterable[Any], page_items: int = 0) -> None:
        self._job = job
        self._inputs: Iterable[Any] | None = inputs
        self._page_items = page_items
        self._drawn: deque[Any] = deque()
        self._drawn_since = 0.0
        self._sending = threading.Lock()
        self._sent = 0
        self._error: BaseException | None = None
        self._done = False
        self._rescue: threading.Thread | None = None

    def start(self) -> None:
        threading.Thread(target=self.run, name="fallow-inputs", daemon=True).start()

    def run(self) -> None:
        """Draw and send everything. What the iterable raises ends the inputs and comes out of the results."""
        inputs, self._inputs = self._inputs, None
        error: BaseException | None = None
        try:
            if type(inputs) is range and not self._page_items:
                for low, high in range_cuts(0, len(inputs), RANGE_PAGE_TASKS):
                    self._job.put(high - low, encode_inputs(inputs[low:high]))
            else:
                assert inputs is not None
                self._draw(iter(inputs))
        except FeedStopped:
            return
        except BaseException as raised:
            error = raised
        finally:
            self._done = True
            if isinstance(inputs, GeneratorType) and error is None:
                inputs.close()
        with self._sending:
            if isinstance(self._error, FeedStopped):
                return
            if error is not None and self._drawn and self._error is None:
                try:
                    self._send_drawn()
                except FeedStopped:
                    return
                except BaseException as raised:
                    error = raised
            self._job.end_inputs(self._error or error)

    def _draw(self, iterator: Iterator[Any]) -> None:
        count = self._page_items or FIRST_ITEMS
        stall = self._watch_for_stalls() if not self._page_items else None
        try:
            while True:
                began = time.monotonic()
                self._drawn_since = began
                before = self._sent + len(self._drawn)
                # A deque takes items one by one, so that a stalled iterable's first items can be sent meanwhile.
                self._drawn.extend(itertools.islice(iterator, count))
                took = time.monotonic() - began
                with self._sending:
                    if self._error is not None:
                        raise self._error
                    got = self._sent + len(self._drawn) - before
                    size = self._send_drawn()
                if got < count:
                    return
                if not self._page_items:
                    count = next_count(count, took, size)
        finally:
            if stall is not None:
                stall.set()

    def _send_drawn(self) -> int:
        """Send what is drawn as one page; returns its bytes. Called with the lock."""
        items = [self._drawn.popleft() for _ in range(len(self._drawn))]
        if not items:
            return 0
        try:
            segments = encode_inputs(items)
        except UnserialisableInput as error:
            good = max(0, error.index)
            if good:
                self._job.put(good, encode_inputs(items[:good]))
                self._sent += good
            raise _renumbered(error, self._sent) from None
        size = sum(map(len, segments))
        self._job.put(len(items), segments)
        self._sent += len(items)
        return size

    def _watch_for_stalls(self) -> threading.Event:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(STALL_S):
                if not self._drawn or time.monotonic() - self._drawn_since < STALL_S:
                    continue
                if not self._sending.acquire(blocking=False):
                    continue
                try:
                    self._send_drawn()
                except BaseException as error:
                    self._error = error
                    return
                finally:
                    self._sending.release()

        threading.Thread(target=watch, name="fallow-inputs-watch", daemon=True).start()
        return stop


def _renumbered(error: UnserialisableInput, index: int) -> UnserialisableInput:
    """The encoder counts within a page; people count within the job."""
    old = f"input {error.index}"
    text, where = str(error), error.where
    if text.startswith(old):
        text = f"input {index}" + text[len(old) :]
    if where.startswith(old):
        where = f"input {index}" + where[len(old) :]
    return UnserialisableInput(text, where, index)
