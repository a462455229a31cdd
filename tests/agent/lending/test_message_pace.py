"""Small pages travel in messages: at the rates that are lent, and a node that sends slowly is not taken for lost."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from fallow.agent.limits.bandwidth import Throttle
from fallow.agent.limits.messages import PacedMessages, size_of
from fallow.model.ids import Digest, JobId, NodeId
from fallow.model.job import Blob
from fallow.model.parts import ResultPage
from fallow.wire.messages import Bye, HandIn, Msg, Pull
from tests.agent.nodes import node_at
from tests.agent.owner import NatsServer, Owner, spec, values

MB = 1_000_000
JOB = JobId("job-aaaaaa")
NODE = NodeId("0123456789abcdef")


def hand_in(seq: int, size: int) -> HandIn:
    page = ResultPage(0, 1, 0, Blob(Digest(""), size, bytes(size)))
    return HandIn(JOB, NODE, 0, (1, 1), seq, 0, 1, results=(page,))


async def test_pages_wait_their_turn_and_beats_do_not() -> None:
    went: list[Msg] = []
    paced = PacedMessages(lambda _subject, message: went.append(message), Throttle(up_bytes_per_s=MB))
    began_s = time.monotonic()
    waits = [paced.send("job", hand_in(seq, 100_000)) for seq in range(6)]
    assert waits == sorted(waits)
    assert 0.2 < waits[-1] < 0.6, "0.6 MB at 1 MB/s, less what may go at once"
    bye = Bye(NODE, "run-1")
    assert paced.send("beat", bye) == 0.0
    assert paced.send("job", Pull(JOB, NODE, 0, 1, True)) > 0.0, "more is asked for when these have gone"
    assert bye in went
    while len(went) < 8:
        assert time.monotonic() - began_s < 30
        await asyncio.sleep(0.01)
    assert time.monotonic() - began_s >= waits[-1] - 0.01
    assert [one.seq for one in went if isinstance(one, HandIn)] == list(range(6))
    assert isinstance(went[-1], Pull)

    paced.throttle.set_rates(0, 0)
    assert paced.send("job", hand_in(6, MB)) == 0.0


async def test_what_waits_goes_when_the_node_ends() -> None:
    went: list[Msg] = []
    paced = PacedMessages(lambda _subject, message: went.append(message), Throttle(up_bytes_per_s=1000))
    sent = [hand_in(seq, 10_000) for seq in range(3)]
    for message in sent:
        paced.send("job", message)
    paced.flush()
    assert went == sent
    assert size_of(sent[0]) > 10_000


def grow(x: int) -> bytes:
    import os

    return os.urandom(50_000)


@pytest.mark.slow
async def test_a_node_holds_its_rates_and_keeps_its_leases(nats: NatsServer, owner: Owner, tmp_path: Path) -> None:
    async with node_at(nats, tmp_path) as node:
        throttle = Throttle(up_bytes_per_s=200_000)
        node.set_pace(throttle)
        owner.assign(await owner.node(), 0, spec(grow))
        began_s = time.monotonic()
        owner.lease(await owner.pull(), (1, 1), range(14))
        await owner.until("the end of the work", lambda: not node.slots[0].is_busy)
        owner.held = ()
        await owner.until("word of what is on its way", lambda: owner.held)
        assert [held.token for held in owner.held] == [(1, 1)]
        assert not any(hand_in.ended for hand_in in owner.hand_ins)
        assert len(values(await owner.ended((1, 1)))) == 14
        assert time.monotonic() - began_s >= 14 * 50_000 / 200_000 - 0.5
        assert len(owner.raw_hand_ins) == len(owner.hand_ins), "what waits to go is not sent twice"
        await owner.until("silence of it", lambda: not owner.held)

        throttle.set_rates(0, 500_000)
        node.set_pace(throttle)
        pull = await owner.pull()
        began_s = time.monotonic()
        owner.lease(pull, (1, 2), [bytes(250_000), b""], start=14)
        await owner.ended((1, 2))
        await owner.pull()
        assert time.monotonic() - began_s >= 0.2, "what came is paid off before more is asked for"
        throttle.set_rates(0, 0)
        node.set_pace(throttle)
        assert node.paced is None, "without limits, nothing stands in the way of messages"
