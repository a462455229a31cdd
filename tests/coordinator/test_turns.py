"""A coordinator at rest turns rarely, and rides with what wakes it anyway; a job, and the end, are noticed at once."""

from __future__ import annotations

import asyncio

from fallow.coordinator.turns import Turns

DEADLINE_S = 30.0
NEVER_S = 3600.0


async def test_a_call_ends_the_wait_and_the_time_does_too() -> None:
    turns, loop = Turns(), asyncio.get_running_loop()
    assert await turns.wait(loop.time(), loop.time() + 0.01)
    waiting = asyncio.ensure_future(turns.wait(loop.time() + NEVER_S, loop.time() + NEVER_S))
    await asyncio.sleep(0)
    turns.hurry()
    async with asyncio.timeout(DEADLINE_S):
        assert not await waiting
    assert not turns.is_over
    assert await turns.wait(loop.time(), loop.time() + 0.01), "one call is one turn"
    turns.end()
    async with asyncio.timeout(DEADLINE_S):
        assert not await turns.wait(loop.time() + NEVER_S, loop.time() + NEVER_S)
    assert turns.is_over


async def test_a_turn_that_is_due_rides_with_what_wakes_the_loop_and_one_that_is_not_does_not() -> None:
    turns, loop = Turns(), asyncio.get_running_loop()
    due = loop.time() + 0.05
    waiting = asyncio.ensure_future(turns.wait(due, loop.time() + NEVER_S))
    await asyncio.sleep(0)
    turns.ride()
    await asyncio.sleep(0)
    assert not waiting.done() or loop.time() >= due
    async with asyncio.timeout(DEADLINE_S):
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns.ride()
    assert await waiting
    assert loop.time() >= due
