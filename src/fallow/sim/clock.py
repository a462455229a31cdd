"""Virtual time: a heap of events. Events at the same time run in the order in which they were put.

Only the events of the current second lie in the heap; later ones wait in lists by second, so that the heap stays as
small as one second is, however many ends of long tasks and comings of nodes there are to come.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from msgspec.msgpack import encode

NOTES_AT_ONCE = 1024

Event = tuple[float, int, Callable[..., None], tuple[Any, ...]]
"""When, in which order, what, and with what."""


class Clock:
    """`now` in seconds. The transcript is a digest of what was noted: equal runs have equal digests."""

    __slots__ = ("_digest", "_edge", "_heap", "_later", "_notes", "_order", "_seconds", "events", "now", "stopped")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.stopped = False
        self._order = 0
        self._heap: list[Event] = []
        """Before `_edge`."""
        self._edge = 0
        self._later: dict[int, list[Event]] = {}
        """By second, from `_edge` on."""
        self._seconds: list[int] = []
        """Those of `_later`, as a heap."""
        self._digest = blake2b(digest_size=16)
        self._notes: list[tuple[float, tuple[object, ...]]] = []

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self.put(self.now + delay_s, what, args)

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self.put(when if when > self.now else self.now, what, args)

    def put(self, when: float, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        """`at`, for a time that is not over and arguments that are packed."""
        self._order += 1
        if when < self._edge:
            heapq.heappush(self._heap, (when, self._order, what, args))
            return
        second = int(when)
        events = self._later.get(second)
        if events is None:
            self._later[second] = [(when, self._order, what, args)]
            heapq.heappush(self._seconds, second)
        else:
            events.append((when, self._order, what, args))

    def run(self, until: float) -> None:
        """Until that time, or until `stopped` is set."""
        heap, pop = self._heap, heapq.heappop
        events = 0
        try:
            while not self.stopped:
                if not heap:
                    if not self._seconds or self._seconds[0] > until:
                        break
                    second = pop(self._seconds)
                    heap = self._heap = self._later.pop(second)
                    heapq.heapify(heap)
                    self._edge = second + 1
                if self._edge > until and heap[0][0] > until:
                    break
                self.now, _, what, args = pop(heap)
                events += 1
                what(*args)
        finally:
            self.events += events
        if not self.stopped:
            self.now = until

    def note(self, *what: object) -> None:
        """Into the transcript: what msgpack can write, and nobody changes any more."""
        self._notes.append((self.now, what))
        if len(self._notes) >= NOTES_AT_ONCE:
            self._digest_notes()

    def _digest_notes(self) -> None:
        self._digest.update(encode(self._notes))
        self._notes.clear()

    @property
    def digest(self) -> str:
        self._digest_notes()
        return self._digest.hexdigest()
