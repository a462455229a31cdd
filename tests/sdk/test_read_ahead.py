"""A map's client asks for the next results while its script still reads the last: one batch ahead, and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fallow.sdk.mapjob import Batch, Part
from fallow.sdk.results import ResultStream
from fallow.sdk.transport import LoopThread

BATCHES = 5
DEADLINE_S = 30.0


class Job:
    """As MapJob to its stream; the pool's answers are there at once."""

    def __init__(self, thread: LoopThread) -> None:
        self.client = SimpleNamespace(thread=thread, later=lambda fn, *args: thread.call(fn, *args))
        self.asked: list[tuple[int, int]] = []
        self.acknowledged: list[int] = []
        self.read = 0
        self.changed = threading.Condition()

    async def fetch(self, cursor: int, *, ordered: bool, consumed: int, stop: int = -1) -> tuple[Batch, int]:
        with self.changed:
            self.asked.append((cursor, consumed))
            self.changed.notify_all()
        part = Part(cursor, cursor + 1, cursor, b"", 0, None)
        return Batch([part], cursor + 1 == BATCHES, None), cursor + 1

    def received(self, count: int) -> None:
        self.read += count

    def acknowledge(self, cursor: int, ordered: bool) -> None:
        with self.changed:
            self.acknowledged.append(cursor)
            self.changed.notify_all()

    def wait_asked(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, DEADLINE_S)


@pytest.fixture
def job() -> Iterator[Job]:
    thread = LoopThread("test-loop")
    yield Job(thread)
    thread.stop()


def settled(job: Job) -> int:
    """How many were asked for, once the loop has nothing left to do."""
    done: list[Any] = [threading.Event() for _ in range(4)]
    for event in done:
        job.client.thread.call(event.set)
        assert event.wait(DEADLINE_S)
    return len(job.asked)


def test_the_next_batch_is_asked_for_before_the_reader_has_seen_the_last_and_never_a_third(job: Job) -> None:
    stream: ResultStream = ResultStream(job)  # type: ignore[arg-type]
    stream.prefetch()
    job.wait_asked(2)
    assert settled(job) == 2, "nobody reads"
    for number in range(BATCHES):
        batch = stream.pending().result(DEADLINE_S)
        assert [part.start for part in stream.arrived(batch)] == [number]
        assert settled(job) <= min(BATCHES, number + 3)
    assert stream.finished
    assert job.asked == [(cursor, cursor) for cursor in range(BATCHES)], "each once, with what is here by then"
    assert job.read == BATCHES
    with job.changed:
        assert job.changed.wait_for(lambda: job.acknowledged == [BATCHES], DEADLINE_S)


def test_what_nobody_wants_is_not_asked_for(job: Job) -> None:
    stream: ResultStream = ResultStream(job)  # type: ignore[arg-type]
    stream.drop()
    stream.prefetch()
    job.wait_asked(1)
    assert settled(job) == 1
