"""Very short tasks run in blocks: the shared map says only once a block which tasks may be in progress.

Naming every task there costs more than a task that does nothing. The block is a list that the loop iterates over; when
a task in it turns out to be long, the helper thread shortens that list, which ends the loop after the task in progress,
and names that task alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from fallow.worker.orders import INDEX, REACH

BLOCK_TASKS = 128
"""A worker's death leaves at most so many suspects."""


class Block:
    """What the main thread has claimed of its order."""

    __slots__ = ("_items", "_iterator", "_lock", "_seen", "_start", "_words")

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._lock = threading.Lock()
        self._seen = -1
        self._start = -1
        self._items: list[Any] = []
        self._iterator: Iterator[Any] | None = None

    def claim(self, start: int, items: list[Any]) -> Iterator[Any]:
        """Tasks [start, start + len(items)) are about to run. Returns what to iterate over."""
        words = self._words
        with self._lock:
            self._start, self._items = start, items
            self._iterator = iterator = iter(items)
            # While a reader sees only one of both words changed, it sees too many tasks in progress, never too few.
            words[REACH] = start + len(items)
            words[INDEX] = start
        return iterator

    def release(self, last: int) -> None:
        """Tasks up to `last` have run (-1: none); from here on INDEX says it all."""
        with self._lock:
            self._iterator = None
            self._words[INDEX] = last
            self._words[REACH] = -1

    def in_progress(self) -> int:
        """The task that the main thread is in, for other threads and for code that the task itself calls."""
        iterator = self._iterator
        if iterator is None:
            return int(self._words[INDEX])
        state = iterator.__reduce__()
        return self._start + int(state[2]) - 1 if len(state) > 2 else self._start + len(self._items) - 1

    def look(self) -> bool:
        """Helper thread, now and then: a block that lasts from one look to the next ends with the task in progress.
        Says whether there is a block."""
        with self._lock:
            iterator = self._iterator
            if iterator is None or self._start != self._seen:
                self._seen = self._start
            else:
                self._narrow(iterator)
            return iterator is not None

    def _narrow(self, iterator: Iterator[Any]) -> None:
        state = iterator.__reduce__()
        if len(state) < 3 or not state[2]:
            return
        del self._items[int(state[2]) :]
        state = iterator.__reduce__()  # the loop may have gone on meanwhile; from here on it stays at its task
        if len(state) < 3:
            return
        self._words[INDEX] = self._start + int(state[2]) - 1
        self._words[REACH] = -1
