"""A coordinator at rest turns rarely; the first job, and the end, are noticed at once."""

from __future__ import annotations

import asyncio

from fallow.coordinator.main import Turns

DEADLINE_S = 30.0


async def test_a_call_ends_the_wait_and_the_time_does_too() -> None:
    turns = Turns()
    assert await turns.wait(0.01)
    waiting = asyncio.ensure_future(turns.wait(3600.0))
    await asyncio.sleep(0)
    turns.hurry()
    async with asyncio.timeout(DEADLINE_S):
        assert not await waiting
    assert not turns.is_over
    assert await turns.wait(0.01), "one call is one turn"
    turns.end()
    async with asyncio.timeout(DEADLINE_S):
        assert not await turns.wait(3600.0)
    assert turns.is_over
