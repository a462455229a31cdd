"""Who writes to the lent disk now: sandboxes of jobs, and those in which environments are built."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from msgspec import Struct


class Writer(Struct, frozen=True, eq=False):
    held: Callable[[], int]
    """Bytes that it holds now, in microseconds."""
    end: Callable[[str], None]
    """End it, for what these words say."""
    is_seen: bool
    """What it holds lies where the caches look; else it is to be counted beside."""


async def _all_of_it(most: int) -> int:
    return most


class Writers:
    """Of one node. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers: tuple[Writer, ...] = ()
        self.changes = 0
        """How many have come and gone."""
        self.room: Callable[[int], Awaitable[int]] = _all_of_it
        """How much of so many bytes one that begins now may write, within what is lent."""

    def __bool__(self) -> bool:
        return bool(self._writers)

    def add(self, writer: Writer) -> None:
        with self._lock:
            self._writers += (writer,)
            self.changes += 1

    def remove(self, writer: Writer) -> None:
        """Nothing where it is not there."""
        with self._lock:
            self._writers = tuple(one for one in self._writers if one is not writer)
            self.changes += 1

    @property
    def held_bytes(self) -> int:
        return sum(one.held() for one in self._writers)

    @property
    def unseen_bytes(self) -> int:
        """Of those that the caches do not see."""
        return sum(one.held() for one in self._writers if not one.is_seen)

    def end_largest(self, why: Callable[[int], str]) -> None:
        """End who holds most; `why` gets how much that is."""
        held, largest = max(((one.held(), one) for one in self._writers), key=lambda found: found[0], default=(0, None))
        if largest is not None and held:
            largest.end(why(held))
