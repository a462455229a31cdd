"""Hand-ins are kept, repeated, put in order, spilled, and forgotten only when they may be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import fallow.agent.outbox as module
from fallow.agent.outbox import FIRST_REPEAT_S, REPEAT_S, Outbox
from fallow.model.ids import Digest, JobId, NodeId
from fallow.model.job import Blob
from fallow.model.parts import ResultPage
from fallow.wire.messages import HandIn, Pull

JOB = JobId("job-aaaaaa")
NODE = NodeId("0123456789abcdef")


def hand_in(seq: int, token: int = 1, data: bytes | None = b"r", ended: bool = False, digest: str = "d") -> HandIn:
    page = ResultPage(seq, seq + 1, seq, Blob(Digest(digest), 1, data))
    return HandIn(JOB, NODE, 0, (1, token), seq, 0, 10, (page,), ended=ended, pull=Pull(JOB, NODE, 0, seq, True))


class Fixture:
    def __init__(self, folder: Path, memory_bytes: int = 1 << 20) -> None:
        self.now = 0.0
        self.sent: list[HandIn] = []
        self.stored: list[str] = []
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.outbox = Outbox(self.sent.append, self.store, folder, lambda: self.now, memory_bytes)

    async def store(self, job_id: JobId, path: str, digest: str, size: int) -> None:
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("no space left on device")
        os.unlink(path)
        self.stored.append(digest)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("did not come about")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Fixture]:
    return lambda **more: Fixture(tmp_path / "outbox", **more)


async def test_a_repeat_claims_nothing_of_what_went_with_the_first(make: Callable[..., Fixture]) -> None:
    """The client may have been told over the connection on which the hand-in was lost."""
    run = make()
    run.outbox.add(msgspec.structs.replace(hand_in(0, ended=True), told=True), {})
    run.outbox.add(hand_in(0, token=2), {})
    run.outbox.resend_lease(JOB, (1, 1))
    run.outbox.resend_lease(JOB, (1, 3))
    assert [(sent.token, sent.told, sent.pull is not None) for sent in run.sent] == [
        ((1, 1), True, True),
        ((1, 2), False, True),
        ((1, 1), False, False),
    ]
    await run.outbox.close()


async def test_repeats_until_acknowledged(make: Callable[..., Fixture]) -> None:
    run = make()
    run.outbox.add(hand_in(1), {})
    assert [message.seq for message in run.sent] == [1]
    assert run.sent[0].pull is not None
    run.now = FIRST_REPEAT_S + 0.1
    run.outbox.resend_due()
    assert len(run.sent) == 2
    assert run.sent[1].pull is None, "the slot may have asked anew since"
    run.outbox.resend_due()
    assert len(run.sent) == 2
    run.now += REPEAT_S + 0.1
    run.outbox.resend_due()
    assert len(run.sent) == 3
    run.outbox.acknowledge(JOB, [((1, 1), 1)])
    run.outbox.resend_all()
    assert len(run.sent) == 3
    assert len(run.outbox) == 0
    assert run.outbox.memory_bytes == 0


async def test_a_reconnection_sends_all_again_in_order(make: Callable[..., Fixture]) -> None:
    run = make()
    for seq in (1, 2, 3):
        run.outbox.add(hand_in(seq), {})
    run.outbox.acknowledge(JOB, [((1, 1), 2), ((9, 9), 1)])
    run.sent.clear()
    run.outbox.resend_all()
    assert [message.seq for message in run.sent] == [1, 3]


async def test_files_are_stored_before_their_hand_in_and_later_ones_wait(
    make: Callable[..., Fixture], tmp_path: Path
) -> None:
    run = make()
    path = tmp_path / "result"
    path.write_bytes(b"x")
    run.gate.clear()
    run.outbox.add(hand_in(1, data=None, digest="large"), {"large": str(path)})
    run.outbox.add(hand_in(2, ended=True), {})
    run.outbox.add(hand_in(1, token=2), {})
    assert [(message.token, message.seq) for message in run.sent] == [((1, 2), 1)]
    assert run.outbox.is_blocked(JOB, (1, 1))
    run.gate.set()
    await run.until(lambda: len(run.sent) == 3)
    assert [(message.token, message.seq) for message in run.sent[1:]] == [((1, 1), 1), ((1, 1), 2)]
    assert run.stored == ["large"]


async def test_a_full_store_is_tried_again_and_loses_nothing(
    make: Callable[..., Fixture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "STORE_RETRY_S", 0.01)
    run = make()
    run.failures = 3
    path = tmp_path / "result"
    path.write_bytes(b"x")
    run.outbox.add(hand_in(1, data=None, digest="large"), {"large": str(path)})
    await run.until(lambda: len(run.sent) == 1)
    assert "no space left" in caplog.text


async def test_beyond_its_memory_it_spills_to_files_and_reads_them_back(
    make: Callable[..., Fixture], tmp_path: Path
) -> None:
    run = make(memory_bytes=40_000)
    for seq in range(1, 11):
        run.outbox.add(hand_in(seq, data=bytes([seq]) * 10_000), {})
    assert run.outbox.memory_bytes <= 40_000
    assert len(list((tmp_path / "outbox").iterdir())) >= 6
    run.sent.clear()
    run.outbox.resend_all()
    assert [message.seq for message in run.sent] == list(range(1, 11))
    assert all(message.results[0].page.data == bytes([message.seq]) * 10_000 for message in run.sent)
    run.outbox.acknowledge(JOB, [((1, 1), seq) for seq in range(1, 11)])
    assert list((tmp_path / "outbox").iterdir()) == []
    assert run.outbox.memory_bytes == 0


async def test_a_job_that_ended_is_dropped_with_what_is_being_stored(
    make: Callable[..., Fixture], tmp_path: Path
) -> None:
    run = make()
    run.gate.clear()
    path = tmp_path / "result"
    path.write_bytes(b"x")
    run.outbox.add(hand_in(1, data=None, digest="large"), {"large": str(path)})
    run.outbox.add(hand_in(1, token=2), {})
    run.outbox.forget_job(JOB)
    assert len(run.outbox) == 0
    run.gate.set()
    await asyncio.sleep(0.02)
    assert len(run.sent) == 1
    assert not path.exists()
