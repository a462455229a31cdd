"""A real agent on which nothing runs: it beats seldom, and at once where that matters."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fallow.core.presence import LEAST_JITTER, REST_INTERVAL_S
from fallow.wire import subjects
from fallow.wire.messages import Assign, LeaderHere
from tests.agent.owner import Agent, Owner, spec

pytestmark = pytest.mark.slow


def double(x: int) -> int:
    return 2 * x


async def at_rest(owner: Owner) -> None:
    await owner.until("a beat at rest", lambda: owner.beats and owner.beats[-1].interval_s >= REST_INTERVAL_S)


async def test_who_is_at_rest_answers_a_new_leader_and_work_at_once(
    owner: Owner, start_agent: Callable[..., Agent]
) -> None:
    agent = start_agent()
    node = await owner.node()
    await at_rest(owner)
    began_s = time.monotonic()
    for question in (LeaderHere(2), LeaderHere(3)):
        before = len(owner.beats)
        owner.connection.send(subjects.NODES, question)
        await owner.until("a beat", lambda before=before: len(owner.beats) > before)  # type: ignore[misc]
        assert owner.beats[-1].spec is not None, "who leads anew knows of no node"
    owner.connection.send(subjects.node(node), Assign(0, 1, 3, spec(double)))
    await owner.until("a beat of who works", lambda: owner.beats[-1].interval_s < REST_INTERVAL_S)
    await owner.pull()
    assert time.monotonic() - began_s < REST_INTERVAL_S * LEAST_JITTER, "the next beat of its own would come then"
    assert agent.end() == 0


async def test_a_beat_at_rest_that_nobody_answers_comes_again_soon(
    owner: Owner, start_agent: Callable[..., Agent]
) -> None:
    start_agent()
    await owner.node()
    await at_rest(owner)
    owner.answers_beats = False
    owner.connection.send(subjects.NODES, LeaderHere(2))
    before, began_s = len(owner.beats), time.monotonic()
    await owner.until("three beats", lambda: len(owner.beats) >= before + 3)
    assert time.monotonic() - began_s < REST_INTERVAL_S, "the first of them was asked for, the others are repeated"
