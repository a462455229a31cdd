from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.owner import Agent, NatsServer, Owner, nats_server, owner_of


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@pytest.fixture
async def owner(nats: NatsServer) -> AsyncIterator[Owner]:
    async with owner_of(nats.address) as owner:
        yield owner


@pytest.fixture
def start_agent(nats: NatsServer, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """start_agent(slots=1, name="node", home="home")"""
    agents: list[Agent] = []

    def start(slots: int = 1, name: str = "node", home: str = "home") -> Agent:
        agents.append(Agent(nats.address, tmp_path / home, slots, name))
        return agents[-1]

    yield start
    for agent in agents:
        agent.destroy()
