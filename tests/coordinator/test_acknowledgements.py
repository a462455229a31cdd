"""Acknowledgements wait for each other: one message to each node, or several where there are many."""

from __future__ import annotations

import asyncio

import pytest

from fallow.coordinator.acknowledgements import ACKS_LIMIT, CROWD, Acknowledgements
from fallow.model.ids import JobId, NodeId
from fallow.wire.messages import HandInAck

ONE, OTHER = NodeId("one"), NodeId("other")


def test_all_of_a_moment_go_in_one_message_to_each_node() -> None:
    told: dict[NodeId, HandInAck] = {}

    async def run() -> None:
        both = asyncio.Event()

        def send(node_id: NodeId, ack: HandInAck) -> None:
            assert node_id not in told, "a second message"
            told[node_id] = ack
            if len(told) == 2:
                both.set()

        acks = Acknowledgements(asyncio.get_running_loop(), JobId("job"), 3, send)
        acks.add(ONE, (3, 1), 1)
        acks.add(OTHER, (3, 2), 1)
        acks.add(ONE, (3, 1), 2)
        assert not told
        await asyncio.wait_for(both.wait(), 30)

    asyncio.run(run())
    assert told[ONE] == HandInAck(JobId("job"), 3, (((3, 1), 1), ((3, 1), 2)))
    assert told[OTHER] == HandInAck(JobId("job"), 3, (((3, 2), 1),))


def test_many_do_not_wait_and_none_is_told_twice() -> None:
    told: list[int] = []

    async def run() -> None:
        acks = Acknowledgements(
            asyncio.get_running_loop(), JobId("job"), 1, lambda _, ack: told.extend(seq for _, seq in ack.acks)
        )
        for seq in range(ACKS_LIMIT):
            acks.add(ONE, (1, 1), seq)
        assert told == list(range(ACKS_LIMIT))
        acks.add(ONE, (1, 1), ACKS_LIMIT)
        acks.flush()
        acks.flush()

    asyncio.run(run())
    assert told == list(range(ACKS_LIMIT + 1))


def test_what_goes_with_another_message_is_not_told_again() -> None:
    told: list[NodeId] = []

    async def run() -> None:
        acks = Acknowledgements(asyncio.get_running_loop(), JobId("job"), 1, lambda node_id, _: told.append(node_id))
        acks.add(ONE, (1, 1), 1)
        acks.add(OTHER, (1, 2), 1)
        acks.add(ONE, (1, 1), 2)
        assert acks.take(ONE) == (((1, 1), 1), ((1, 1), 2))
        assert acks.take(ONE) == ()
        acks.flush()

    asyncio.run(run())
    assert told == [OTHER]


def test_a_crowd_waits_a_shorter_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fallow.coordinator.acknowledgements.ACK_AFTER_S", 3600.0)

    async def run() -> None:
        done = asyncio.Event()
        acks = Acknowledgements(asyncio.get_running_loop(), JobId("job"), 1, lambda *_: done.set())
        for seq in range(CROWD):
            acks.add(ONE, (1, 1), seq)
        await asyncio.wait_for(done.wait(), 30)

    asyncio.run(run())
