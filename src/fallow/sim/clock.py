"""Virtual time: a heap of events. Events at the same time run in the order in which they were put."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import blake2b
from typing import Any


class Clock:
    """`now` in seconds. The transcript is a digest of what was noted: equal runs have equal digests."""

    __slots__ = ("_digest", "_heap", "_order", "events", "now", "stopped")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.stopped = False
        self._order = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._digest = blake2b(digest_size=16)

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, what, args))

    def put(self, delay_s: float, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        """`after`, for arguments that are packed already."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, what, args))

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, what, args))

    def run(self, until: float) -> None:
        """Until that time, or until `stopped` is set."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until and not self.stopped:
            self.now, _, what, args = pop(heap)
            self.events += 1
            what(*args)
        if not self.stopped:
            self.now = until

    def note(self, *what: object) -> None:
        """Into the transcript."""
        self._digest.update(f"{self.now:.6f} {what}\n".encode())

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()
