"""The clock of PostgreSQL is set while coordinators work: nobody loses a job by it, and no dead one keeps its jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import OwnerReport
from tests.engines.postgres import Postgres
from tests.engines.wall_clock import why_not

from .parts import HandAgent, Inbox
from .test_several import Coordinators, agent, coordinators, job_of_two, owner_of

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


async def test_an_hour_forward_makes_nobody_dead_and_an_hour_back_lets_no_dead_one_live(
    coordinators: Coordinators, connection: Connection, agent: HandAgent, clock: Postgres
) -> None:
    job = await job_of_two(coordinators, connection)
    lease = await agent.lease(job.job_id)
    owner = await owner_of(connection, job)
    inbox = Inbox()
    await connection.subscribe(subjects.OWNERS, inbox)
    for hours in (1, 2, 3):
        clock.set_clock(hours * HOUR_S)
        for name in ("one", "two"):
            report = await inbox.take(OwnerReport, lambda m, name=name: m.owner == name)  # type: ignore[misc]
            assert any(each.spec.job_id == job.job_id for each in report.jobs) == (name == owner)
    assert (await agent.lease(job.job_id, slot=1)).epoch == lease.epoch, "another one took it"
    coordinators.running[owner].kill()
    clock.set_clock(-HOUR_S)
    assert await owner_of(connection, job, besides=owner) != owner
    assert (await agent.lease(job.job_id)).epoch > lease.epoch
