"""The clock of PostgreSQL is set while coordinators work: nobody loses a job by it, and no dead one keeps its jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import OwnerReport
from tests.engines.postgres import Postgres
from tests.engines.wall_clock import why_not

from .parts import HandAgent, Inbox, spec
from .test_coordinator import CLIENT, fetch_all, run_all, submit
from .test_several import Coordinators, agent, coordinators, owner_of

__all__ = ["agent", "coordinators"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"a server's clock cannot be set here: {why_not()}"),
]

HOUR_S = 3600


@pytest.fixture
def clock(postgres: Postgres) -> Iterator[Postgres]:
    yield postgres
    postgres.set_clock(0)


async def test_an_hour_forward_makes_nobody_dead(
    coordinators: Coordinators, connection: Connection, agent: HandAgent, clock: Postgres
) -> None:
    coordinators.start("one")
    coordinators.start("two")
    job = spec(CLIENT)
    await submit(connection, job, 40)
    lease = await agent.lease(job.job_id)
    owner = await owner_of(connection, job)
    inbox = Inbox()
    await connection.subscribe(subjects.OWNERS, inbox)
    for hours in range(1, 5):
        clock.set_clock(hours * HOUR_S)
        for name in ("one", "two", "one", "two"):
            report = await inbox.take(OwnerReport, lambda m, name=name: m.owner == name)  # type: ignore[misc]
            assert any(each.spec.job_id == job.job_id for each in report.jobs) == (name == owner)
    later = await agent.lease(job.job_id, slot=1)
    assert later.epoch == lease.epoch, "another one took it"


async def test_an_hour_back_does_not_let_the_dead_live(
    coordinators: Coordinators, connection: Connection, agent: HandAgent, clock: Postgres
) -> None:
    coordinators.start("one")
    coordinators.start("two")
    job = spec(CLIENT)
    await submit(connection, job, 4)
    first = await owner_of(connection, job)
    coordinators.running[first].kill()
    clock.set_clock(-HOUR_S)
    assert await owner_of(connection, job, besides=first) != first
    await run_all(agent, job, 4)
    assert sum(b - a for a, b in await fetch_all(connection, job)) == 4
