"""Nodes that are lost: silent ones, and those whose agent has started anew."""

from __future__ import annotations

import asyncio
import time

import pytest

from fallow.core.presence import REST_INTERVAL_S
from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import Assign, BeatAck, Held, LeaderHere, Lease

from .parts import CoordinatorProcess, HandAgent, Inbox, spec
from .test_coordinator import CLIENT, fetch_all, hand_in, results, submit

pytestmark = pytest.mark.slow


async def test_lost_node_gives_its_ranges_to_another(coordinator: CoordinatorProcess, connection: Connection) -> None:
    one, two = HandAgent(connection, "one"), HandAgent(connection, "two")
    await one.start()
    job = spec(CLIENT)
    await submit(connection, job, 1)
    lease = await one.lease(job.job_id)
    await two.start()
    beating = asyncio.create_task(_beat_for_ever(two))
    try:
        again = await two.lease(job.job_id)
        assert (again.start, again.stop) == (lease.start, lease.stop)
        assert again.token > lease.token
        hand_in(one, lease, results(0, 1))
        hand_in(two, again, results(0, 1))
        await two.acknowledged()
        assert await fetch_all(connection, job) == [(0, 1)], "both results were recorded"
    finally:
        beating.cancel()


async def test_a_node_that_starts_anew_has_lost_what_it_held(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    """At once, though the new agent says nothing to the job's owner."""
    one, two = HandAgent(connection, "one"), HandAgent(connection, "two")
    await one.start()
    job = spec(CLIENT)
    await submit(connection, job, 1)
    lease = await one.lease(job.job_id)
    one.send(Held(job.job_id, one.node_id, "one", one.session, (), interval_s=600.0))  # silence is noticed much later
    await two.start()
    one.session, one.seq, one.works_for = "another", 0, set()
    one.beat(one.spec)
    beating = [asyncio.create_task(_beat_for_ever(agent)) for agent in (one, two)]
    try:
        again = await two.lease(job.job_id)
        assert (again.start, again.stop) == (lease.start, lease.stop)
    finally:
        for task in beating:
            task.cancel()


async def test_a_lease_that_was_lost_on_its_way_comes_again(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    """The very same one: as soon as a beat shows that its node knows nothing of it."""
    agent = HandAgent(connection, "one")
    await agent.start()
    job = spec(CLIENT)
    await submit(connection, job, 1)
    lost = await agent.lease(job.job_id)
    agent.had.clear()
    again = await agent.inbox.take(Lease, again=agent.beat)
    assert again == lost
    hand_in(agent, again, results(0, 1))
    await agent.acknowledged(again)


async def test_a_node_that_died_at_rest_delays_a_job_by_two_seconds_or_so(
    coordinator: CoordinatorProcess, connection: Connection
) -> None:
    """Its next beat is due much later, but whoever is given work is to answer."""
    agents = [HandAgent(connection, name) for name in ("one", "two")]
    for agent in agents:
        agent.interval_s = REST_INTERVAL_S
        await agent.start()
        await agent.inbox.take(BeatAck, again=lambda agent=agent: agent.beat(agent.spec))  # type: ignore[misc]
    await submit(connection, spec(CLIENT), 1)
    taking = [asyncio.create_task(agent.inbox.take(Assign, lambda given: given.spec is not None)) for agent in agents]
    done, others = await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1, "one input is for one slot"
    began_s = time.monotonic()
    await asyncio.gather(*others)
    assert time.monotonic() - began_s < REST_INTERVAL_S * 0.8, "generous on a loaded machine: on an idle one it is 2 s"


async def test_a_new_leader_asks_for_nodes_at_rest(coordinator: CoordinatorProcess, connection: Connection) -> None:
    told = Inbox()
    await connection.subscribe(subjects.NODES, told)
    await connection.flush()
    coordinator.kill()
    coordinator.start()
    assert (await told.take(LeaderHere)).epoch > 0


async def _beat_for_ever(agent: HandAgent) -> None:
    while True:
        agent.beat()
        await asyncio.sleep(0.5)
