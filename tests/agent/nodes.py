"""An agent's node in the test's own process, with real workers and a real connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fallow.agent.link import Link, connect_patiently
from fallow.agent.node import Node
from fallow.agent.workers import Workers
from fallow.model.ids import NodeId
from tests.agent.owner import NatsServer


@contextlib.asynccontextmanager
async def node_at(nats: NatsServer, folder: Path, slots: int = 1) -> AsyncIterator[Node]:
    (folder / "home").mkdir()
    (folder / "scratch").mkdir()
    workers = Workers(folder / "scratch")
    node = Node(NodeId("0123456789abcdef"), "node", slots, folder / "home", folder / "scratch", workers, False)
    node.start_workers()
    ended = asyncio.Event()
    link = Link(await connect_patiently(nats.address, "agent"), node.on_message)
    serving = asyncio.ensure_future(node.serve(link, ended, None))
    try:
        yield node
    finally:
        ended.set()
        await serving
        await node.close()
