"""What waits for a worker that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fallow.agent.outgoing import Outgoing
from fallow.agent.worker_files import WorkerMap
from fallow.agent.worker_process import HEARD_AT_ONCE, UNREAD_ANSWERS, Process
from fallow.worker import orders
from fallow.worker.frames import FrameReader, frame
from tests.worker.harness import WITHIN_S, Recorder


async def test_what_waits_is_counted_and_comes_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    outgoing = Outgoing(ours, asyncio.get_running_loop())
    bodies = [bytes([n]) * 100_000 for n in range(20)]
    for number, body in enumerate(bodies):
        outgoing.put(frame(body), is_answer=number % 2 == 0)
    assert outgoing.unread_answers >= 5
    assert 1_000_000 < outgoing.unread_bytes < 2_000_000
    reader, came = FrameReader(), list[bytes]()
    async with asyncio.timeout(WITHIN_S):
        while len(came) < len(bodies):
            with contextlib.suppress(BlockingIOError):
                came += reader.receive(theirs)
            await asyncio.sleep(0)
    assert came == bodies
    assert (outgoing.unread_bytes, outgoing.unread_answers) == (0, 0)
    for _ in range(100):  # nobody reads any more
        outgoing.put(frame(bytes(10_000)), is_answer=True)
    theirs.close()
    async with asyncio.timeout(WITHIN_S):
        while outgoing.unread_bytes:
            await asyncio.sleep(0)
    assert outgoing.unread_answers == 0
    outgoing.close()
    ours.close()


class Zygote:
    """What a process needs of its zygote."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def kill_worker(self, serial: int) -> None:
        self.killed.append(serial)

    def expect_end(self, serial: int) -> None: ...


@pytest.fixture
async def spoken(tmp_path: Path) -> AsyncIterator[tuple[Process, Recorder, Zygote, socket.socket]]:
    """A sandboxed worker, played by the test: it has the other end of the socket."""
    if os.name != "posix":
        pytest.skip("sandboxes need Linux")
    from fallow.agent.confined import Confined

    zygote: Any = Zygote()
    recorder, confined = Recorder(), Confined(tmp_path / "box")
    ours, theirs = socket.socketpair()
    (out, out_end), (error, error_end) = os.pipe(), os.pipe()
    for descriptor in (out, error):
        os.set_blocking(descriptor, False)
    process = Process(zygote, 1, 0, recorder, ours, WorkerMap(), out, error, str(tmp_path), confined)
    process.started(os.getpid(), 0)
    yield process, recorder, zygote, theirs
    process.ended(-9, False, "")
    theirs.close()
    for descriptor in (out_end, error_end):
        os.close(descriptor)
    confined.close()


def asks(count: int) -> bytes:
    return b"".join(frame(orders.encode(orders.Ask(serial, "request", b""))) for serial in range(count))


async def test_who_asks_without_reading_is_killed_after_so_many_answers(
    spoken: tuple[Process, Recorder, Zygote, socket.socket],
) -> None:
    process, recorder, zygote, theirs = spoken
    theirs.setblocking(False)
    flood = memoryview(asks(3000))
    async with asyncio.timeout(WITHIN_S):
        while not zygote.killed:
            with contextlib.suppress(BlockingIOError):
                flood = flood[theirs.send(flood) :]
            await asyncio.sleep(0)
    # (Beyond those answers, a socket's buffer holds a few hundred.)
    assert UNREAD_ANSWERS < len(recorder.asks) < 2500
    process.ended(-9, False, "")
    assert "asks without reading" in recorder.deaths[0][1].message


async def test_what_one_worker_says_is_heard_in_many_turns_and_all_of_it(
    spoken: tuple[Process, Recorder, Zygote, socket.socket],
) -> None:
    _process, recorder, zygote, theirs = spoken
    theirs.setblocking(False)
    count = 10 * HEARD_AT_ONCE
    theirs.sendall(asks(count))
    seen, reader, read = [0], FrameReader(), 0
    async with asyncio.timeout(WITHIN_S):
        while read < count:
            await asyncio.sleep(0)
            seen.append(len(recorder.asks))
            with contextlib.suppress(BlockingIOError):
                read += len(reader.receive(theirs))
    assert not zygote.killed
    assert len(recorder.asks) == count
    assert max(after - before for before, after in itertools.pairwise(seen)) <= HEARD_AT_ONCE


async def test_what_it_said_last_counts_though_it_is_gone(
    spoken: tuple[Process, Recorder, Zygote, socket.socket],
) -> None:
    process, recorder, _zygote, theirs = spoken
    theirs.sendall(asks(3 * HEARD_AT_ONCE))
    await recorder.until(lambda: recorder.asks)
    process.ended(0, False, "")
    assert len(recorder.asks) == 3 * HEARD_AT_ONCE
