"""Putting what a job needs where the disk of the pool's blobs may be full at the moment: the pool deletes what was
read, and takes less from nodes, so that there may be room soon. It is waited for, in words, and not for ever.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from fallow.model.errors import PoolRefused

if TYPE_CHECKING:
    from fallow.sdk.client import Client

T = TypeVar("T")

ROOM_PATIENCE_S = 20.0
"""How long new work waits for room."""
SAY_AFTER_S = 2.0
_FIRST_S, _MOST_S = 0.02, 0.5


class Waiting:
    """For room, since the first refusal. `goes_on`: whether the wait may last, since something is under way that will
    make room."""

    def __init__(self, client: Client, goes_on: Callable[[], bool] = lambda: False) -> None:
        self._client = client
        self._goes_on = goes_on
        self._since = 0.0
        self._delay_s = _FIRST_S

    def refused(self, error: PoolRefused) -> float:
        """Seconds after which to try again. Raises the error where that is of no use, or was tried for long."""
        now = time.monotonic()
        if error.kind != "store_full":
            raise error
        if not self._since or self._goes_on():
            self._since = self._since or now
        elif now - self._since > ROOM_PATIENCE_S:
            raise error
        if now - self._since > SAY_AFTER_S:
            self._client.waits_for_room(str(error))
        self._delay_s = min(_MOST_S, self._delay_s * 1.6)
        return self._delay_s * random.uniform(0.7, 1.3)


def put_blocking(client: Client, put: Callable[[], T], goes_on: Callable[[], bool] = lambda: False) -> T:
    """`put()`, again and again while there is no room. For callers' threads. Raises what it raises."""
    waiting: Waiting | None = None
    while True:
        try:
            return put()
        except PoolRefused as error:
            waiting = waiting or Waiting(client, goes_on)
            delay_s = waiting.refused(error)
        time.sleep(delay_s)


async def put_waiting(client: Client, put: Callable[[], Awaitable[T]]) -> T:
    """The same on the client's loop."""
    waiting: Waiting | None = None
    while True:
        try:
            return await put()
        except PoolRefused as error:
            waiting = waiting or Waiting(client)
            delay_s = waiting.refused(error)
        await asyncio.sleep(delay_s)
