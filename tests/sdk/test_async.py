"""The twins for asyncio of everything that waits."""

from __future__ import annotations

import asyncio
import operator
from pathlib import Path

import psutil
import pytest

from tests.pool import wait_for
from tests.sdk import tasks

pytestmark = pytest.mark.usefixtures("connected")


async def test_async_twins() -> None:
    assert await tasks.square.remote.aio(5) == 25
    assert [y async for y in tasks.square.map.aio(range(100))] == [x * x for x in range(100)]
    assert [y async for y in tasks.add.starmap.aio([(1, 2)])] == [3]
    assert await asyncio.gather(*(tasks.square.remote.aio(n) for n in range(50))) == [n * n for n in range(50)]
    handle = await tasks.square.spawn.aio(4)
    assert await handle.get.aio(timeout=60) == 16
    await tasks.echo.for_each.aio([1, 2])
    with pytest.raises(tasks.Odd):
        await tasks.only_even.remote.aio(1)

    async def source():  # type: ignore[no-untyped-def]
        for n in range(5):
            await asyncio.sleep(0)
            yield n

    assert [y async for y in tasks.square.map.aio(source())] == [0, 1, 4, 9, 16]
    assert await tasks.square.map.aio(source(), reduce=operator.add) == 30
    assert [y async for y in tasks.square.map.aio([1, 2], reduce=operator.add)] == [5]
    job = await tasks.square.map.aio([3], detached=True)
    assert await job.get.aio(timeout=60) == [9]
    with pytest.raises(TypeError, match="async for"):
        await tasks.square.map.aio([1])


async def test_a_call_that_is_cancelled_is_stopped(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    call = asyncio.ensure_future(tasks.stays.remote.aio(str(file)))
    while not file.exists() or not file.read_text():
        assert not call.done(), call.result()
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    worker = int(file.read_text())
    await asyncio.to_thread(wait_for, "the worker to be stopped", lambda: not psutil.pid_exists(worker))
    assert await tasks.square.remote.aio(3) == 9
