"""Waiting for a state, with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], bool], timeout_s: float, hurry: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not holds() and loop.time() < deadline and not hurry.is_set():
        await asyncio.sleep(0.01)
