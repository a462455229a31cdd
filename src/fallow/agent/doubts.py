"""What a sandboxed worker may say. A stranger's code can write any bytes on its worker's socket: whatever Fallow's own
worker would never send is answered by killing the worker.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

import blake3

from fallow.core.intervals import IntervalSet
from fallow.model.job import INLINE_LIMIT_BYTES
from fallow.worker import orders
from fallow.worker.pages import FAILED_LIST_LIMIT
from fallow.worker.runner import RETRY_LATER_LIMIT

FRAME_BYTES = 16 * 1024 * 1024
"""Of one message. Reports hold 2 MiB of results and one more page; requests of nested work a little more."""
ASKS_PER_S = 2000.0
ASKS_AT_ONCE = 4000
"""Requests to the node: a burst, and what may follow each second."""
COST_OF = {"request": 1.0, "publish": 1.0, "waiting": 1.0, "blob": 1.0, "put": 1.0, "checkpoint": 1.0, "pool": 100.0}
"""All that may be asked, in requests of the usual kind. For a new client (pool) the node subscribes on the message bus;
honest code has one in each process."""
ASKS_OPEN = 512
"""Requests that wait for their answer."""
RETRY_DELAY_MAX_S = 24 * 3600.0
RESULT_BYTES_MAX = 1 << 40
WORDS_LIMIT = 64 * 1024

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_PATH = re.compile(r"/scratch/[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


def is_digest(text: str) -> bool:
    return bool(_DIGEST.match(text))


class Doubts:
    """Of one worker, about one order at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._token: tuple[int, int] | None = None
        self._start = self._stop = 0
        self._covered = IntervalSet()
        self._tokens = float(ASKS_AT_ONCE)
        self._at_s = clock()
        self._open = 0
        self._began_s = 0.0

    def begin(self, token: tuple[int, int], start: int, stop: int) -> None:
        """The agent has sent an order."""
        self._token, self._start, self._stop = (token[0], token[1]), start, stop
        self._covered = IntervalSet()
        self._began_s = self._clock()

    def answered(self) -> None:
        """A request was answered."""
        self._open = max(0, self._open - 1)

    def about(self, message: orders.FromWorker) -> str:
        """What is wrong with it, in words; '' where nothing is."""
        if isinstance(message, orders.Report):
            return self._about_report(message)
        if isinstance(message, orders.Ask):
            return self._about_ask(message.kind)
        if len(message.message) > WORDS_LIMIT or len(message.detail) > WORDS_LIMIT:
            return "its words are too many"
        return ""

    def _about_ask(self, kind: str) -> str:
        cost = COST_OF.get(kind)
        if cost is None:
            return "it asks for what there is not"
        now = self._clock()
        self._tokens = min(float(ASKS_AT_ONCE), self._tokens + (now - self._at_s) * ASKS_PER_S)
        self._at_s = now
        self._tokens -= cost
        self._open += 1
        if self._tokens < 0 or self._open > ASKS_OPEN:
            return "it asks too much"
        return ""

    def _about_report(self, report: orders.Report) -> str:
        if self._token is None or tuple(report.token) != self._token:
            return "it reports on a lease that it does not have"
        if not report.results and not report.ended and not report.no_room:
            return "it reports nothing"
        for page in report.results:
            if words := self._about_page(page):
                return words
        if words := self._about_rest(report):
            return words
        if report.ended:
            self._token = None
        return ""

    def _about_page(self, page: orders.WrittenPage) -> str:
        if not self._start <= page.start < page.stop <= self._stop:
            return "it hands in tasks that are not in its lease"
        if self._covered.intersects(page.start, page.stop):
            return "it hands in tasks twice"
        self._covered.add(page.start, page.stop)
        if not is_digest(page.digest) or not 0 < page.size <= RESULT_BYTES_MAX:
            return "a page of its results has no digest or size"
        if page.data is not None:
            if page.path or len(page.data) != page.size or page.size > INLINE_LIMIT_BYTES:
                return "a page of its results is not of the size that it says"
            if blake3.blake3(page.data).hexdigest() != page.digest:
                return "a page of its results has another digest than it says"
        elif not _PATH.match(page.path):
            return "a page of its results lies where it may not write"
        failed = page.failed
        if not 0 <= page.failed_count <= page.stop - page.start or len(failed) > FAILED_LIST_LIMIT:
            return "it counts failures that cannot be"
        if any(not page.start <= index < page.stop for index in failed):
            return "it names failures of tasks that are not in the page"
        return ""

    def _about_rest(self, report: orders.Report) -> str:
        if len(report.give_back) > 1 or len(report.retry_later) > RETRY_LATER_LIMIT:
            return "it gives back more than it can"
        if any(not self._start <= start <= stop <= self._stop for start, stop in report.give_back):
            return "it gives back tasks that are not in its lease"
        for index, size, words in report.no_room:
            if not self._start <= index < self._stop or self._covered.intersects(index, index + 1):
                return "it has no room for results of tasks that are not in its lease"
            self._covered.add(index, index + 1)
            if not 0 < size <= RESULT_BYTES_MAX or len(words) > WORDS_LIMIT:
                return "it has no room for results that cannot be"
        for index, attempt, delay_s in report.retry_later:
            if not self._start <= index < self._stop or not 0 <= attempt <= 1_000_000:
                return "it puts off tasks that are not in its lease"
            if not 0.0 <= delay_s <= RETRY_DELAY_MAX_S:
                return "it puts off tasks for too long"
        elapsed_s = self._clock() - self._began_s + 1.0
        if not (math.isfinite(report.run_s) and 0.0 <= report.run_s <= elapsed_s):
            return "it claims more time than has passed"
        if not (math.isfinite(report.cpu_s) and report.cpu_s >= 0.0):
            return "it claims processor time that cannot be"
        return ""
