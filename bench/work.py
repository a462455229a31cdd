"""What the tasks do. Standard library and numpy alone: these functions run inside every peer's workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

ARRAY_BYTES = 1_000_000


def noop(x: Any) -> Any:
    return x


def noop_many(items: Any) -> list[Any]:
    """Chunking by hand: one task for many items."""
    return [noop(x) for x in items]


def shift(array: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    return array + 1


def arrays(count: int) -> Iterator[numpy.ndarray[Any, Any]]:
    """Distinct arrays of 1 MB, made as they are drawn, so that nobody can send one of them twice for all."""
    import numpy

    for index in range(count):
        yield numpy.full(ARRAY_BYTES // 8, index, dtype=numpy.int64)


def burn(cpu_s: float) -> float:
    """Use that many seconds of CPU time of this thread, however long it takes."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass
    return cpu_s


def nap(index: int) -> tuple[int, int]:
    """10 ms of waiting; says which process did it."""
    time.sleep(0.01)
    return index, os.getpid()


def poison(index: int) -> int:
    if index == 500:
        os._exit(13)
    return index


def touch(array: numpy.ndarray[Any, Any]) -> tuple[int, float, int]:
    """Read one word of every memory page; (process, when it was done on the machine's monotonic clock, sum).
    Then hold the worker for a moment, so that the next task goes to the other one."""
    total = int(array[::512].sum())
    done = time.monotonic()
    time.sleep(0.4)
    return os.getpid(), done, total
