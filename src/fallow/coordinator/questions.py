"""Reads of the store that clients ask for: behind a bounded queue, and never later than anybody waits for the answer.

What the coordinator itself needs (inputs of a lease, jobs of the dead) goes past it, by the same thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from fallow.store.protocol import StoreError

WAITING_LIMIT = 1000
"""Questions that wait at once; further ones are refused."""
DEADLINE_S = 5.0
"""Whoever asked has asked again by then, or has gone: the question is not put to the store any more."""


class StoreBusy(StoreError):
    """Too many questions at once, or this one waited too long: ask again."""


class Questions:
    """`ask` on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reader: Executor) -> None:
        self._loop = loop
        self._reader = reader
        self._waiting = 0

    async def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns, called on the reader's thread. Raises StoreError."""
        if self._waiting >= WAITING_LIMIT:
            raise StoreBusy(f"{self._waiting} questions wait for it already. Ask again in a moment.")
        self._waiting += 1
        try:
            return await self._loop.run_in_executor(self._reader, _in_time, time.monotonic(), function, args)
        finally:
            self._waiting -= 1


def _in_time(asked_s: float, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    waited_s = time.monotonic() - asked_s
    if waited_s > DEADLINE_S:
        raise StoreBusy(f"the question waited {waited_s:.0f} s for its turn. Ask again in a moment.")
    return function(*args)
