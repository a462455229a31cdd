from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from fallow.wire.connection import Connection, connect

from .parts import CoordinatorProcess, NatsProcess


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    server = NatsProcess(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def coordinator(nats: NatsProcess, tmp_path: Path) -> Iterator[CoordinatorProcess]:
    process = CoordinatorProcess(nats.address, tmp_path)
    yield process
    process.kill()


@pytest_asyncio.fixture()
async def connection(nats: NatsProcess) -> AsyncIterator[Connection]:
    made = await connect(nats.address, "test")
    yield made
    await made.close()
