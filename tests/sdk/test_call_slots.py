"""Which slot a call is sent to, and that it really takes the short way."""

from __future__ import annotations

import asyncio
from typing import Any

import fallow
from fallow.model.ids import ClientId, Digest, JobId, NodeId, call_token
from fallow.model.job import Blob
from fallow.sdk.call_slots import CallSlots, with_lease
from fallow.wire import subjects
from fallow.wire.address import parse_address
from fallow.wire.connection import connect
from fallow.wire.messages import AppendCalls, CallSlot, InputPage, Lease
from tests.pool import Pool

JOB = JobId("job-aaaaaa")
NODE = NodeId("0123456789abcdef")


def told(slot: int, is_open: bool = True) -> CallSlot:
    return CallSlot(JOB, 1, NODE, slot, is_open)


def test_one_call_a_slot_and_none_past_a_call_that_waits_elsewhere() -> None:
    slots = CallSlots()
    assert slots.take(0, 0) is None, "nobody has said that a slot waits"
    slots.told(told(0))
    slots.told(told(0))
    slots.told(told(1))
    first, second = slots.take(1, 0), slots.take(2, 1)
    assert {first, second} == {(NODE, 0), (NODE, 1)}
    assert slots.take(3, 2) is None, "both are busy"
    slots.answered(1)
    assert slots.take(4, 2) is None, "a call waits that was not sent to a slot"
    assert slots.take(5, 1) == first, "the one that answered last"


def test_a_slot_that_is_shut_gets_nothing_more_also_once_it_has_answered() -> None:
    slots = CallSlots()
    slots.told(told(0))
    assert slots.take(0, 0) == (NODE, 0)
    slots.told(told(0, is_open=False))
    slots.answered(0)
    assert slots.take(1, 0) is None
    slots.told(told(0))
    slots.clear()
    assert slots.take(2, 0) is None, "a new owner has to say it anew"


def test_the_slot_gets_what_the_owner_would_have_sent_it() -> None:
    page = InputPage(7, 8, Blob(Digest("00"), 1, b"x"))
    append = AppendCalls(JOB, ClientId("client-a"), (page,), (), (NODE, 3))
    (to_owner, same), (to_node, lease) = with_lease(append, 2)
    assert (to_owner, same) == (subjects.job(JOB), append)
    assert to_node == subjects.calls(NODE)
    assert isinstance(lease, Lease)
    assert (lease.token, lease.slot, lease.start, lease.stop, lease.pages) == (call_token(2, 7), 3, 7, 8, (page,))
    assert with_lease(AppendCalls(JOB, ClientId("client-a"), (page,)), 2) == [
        (subjects.job(JOB), AppendCalls(JOB, ClientId("client-a"), (page,)))
    ]


async def test_calls_one_after_the_other_are_sent_to_a_slot_and_counted_by_their_owner(connected: Pool) -> None:
    app = fallow.App("short")

    @app.function()
    def double(x: int) -> int:
        return 2 * x

    seen: list[Any] = []
    connection = await connect(parse_address(connected.url), "watch")
    await connection.subscribe("fw.calls.*", lambda message, _: seen.append(message))
    await connection.flush()
    number = 0
    while len(seen) < 20:
        assert await asyncio.to_thread(double.remote, number) == 2 * number
        number += 1
        assert number < 2000, "no call took the short way"
    assert all(isinstance(message, Lease) for message in seen)
    await connection.close()
