"""Virtual time: a heap of events. Events at the same time run in the order in which they were put."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

NOTES_AT_ONCE = 1024


class Clock:
    """`now` in seconds. The transcript is a digest of what was noted: equal runs have equal digests."""

    __slots__ = ("_digest", "_heap", "_notes", "_order", "events", "now", "stopped")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.stopped = False
        self._order = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._digest = blake2b(digest_size=16)
        self._notes: list[str] = []

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, what, args))

    def put(self, delay_s: float, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        """`after`, for arguments that are packed already."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, what, args))

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when if when > self.now else self.now, self._order, what, args))

    def run(self, until: float) -> None:
        """Until that time, or until `stopped` is set."""
        heap, pop = self._heap, heapq.heappop
        events = 0
        try:
            while heap and heap[0][0] <= until and not self.stopped:
                self.now, _, what, args = pop(heap)
                events += 1
                what(*args)
        finally:
            self.events += events
        if not self.stopped:
            self.now = until

    def note(self, *what: object) -> None:
        """Into the transcript."""
        self._notes.append(f"{self.now:.6f} {what}\n")
        if len(self._notes) >= NOTES_AT_ONCE:
            self._digest_notes()

    def _digest_notes(self) -> None:
        self._digest.update("".join(self._notes).encode())
        self._notes.clear()

    @property
    def digest(self) -> str:
        self._digest_notes()
        return self._digest.hexdigest()
