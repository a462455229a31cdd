"""The agent's end of the wire: one connection, and the subject of this node to listen on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fallow.model.errors import PoolUnreachable
from fallow.model.ids import NodeId
from fallow.wire import subjects
from fallow.wire.address import PoolAddress
from fallow.wire.messages import Msg

if TYPE_CHECKING:
    from fallow.wire.connection import Connection

log = logging.getLogger("fallow.agent")

CONNECT_TIMEOUT_S = 5.0
RETRY_MAX_S = 5.0


class Link:
    """Connected to the pool. `on_message` gets every message to this node, in order."""

    def __init__(self, connection: Connection, on_message: Callable[[Any], None]) -> None:
        self.connection = connection
        self._on_message = on_message

    async def listen(self, node_id: NodeId, on_call: Callable[[Any], None]) -> None:
        """Take orders from now on, and from clients what `on_call` takes."""
        for subject in (subjects.node(node_id), subjects.NODES):
            await self.connection.subscribe(subject, lambda message, _reply: self._on_message(message))
        await self.connection.subscribe(subjects.calls(node_id), lambda message, _reply: on_call(message))
        await self.connection.flush()

    @property
    def is_connected(self) -> bool:
        return self.connection.is_connected

    def send(self, subject: str, message: Msg) -> None:
        """Queue for publishing, in order. Never blocks; may be lost, as everything on the wire may."""
        self.connection.send(subject, message)

    async def close(self) -> None:
        """Publish what is queued, as far as that goes in a moment, and disconnect."""
        await asyncio.sleep(0)
        if self.is_connected:
            await self.connection.flush(1.0)
        await self.connection.close()


def say_away(is_away: bool, was_said: bool) -> bool:
    """Say once for each time that the pool is away, for whoever sits before `fallow join` or reads its log. Returns
    what was said last."""
    if is_away != was_said:
        log.warning("the pool %s", "does not answer; what is done is kept for it" if is_away else "answers again")
    return is_away


async def connect_patiently(address: PoolAddress, name: str) -> Connection:
    """Connect, trying for ever; says once in a while in the log that the pool is away.

    Raises PoolRefused where the pool does not take the token."""
    from fallow.wire.connection import connect

    delay_s = 0.2
    while True:
        await _wait_for_listener(address, 2.0)
        try:
            return await connect(address, name, CONNECT_TIMEOUT_S)
        except PoolUnreachable as error:
            log.warning("%s Trying again.", error)
        await asyncio.sleep(delay_s)
        delay_s = min(RETRY_MAX_S, delay_s * 2)


async def _wait_for_listener(address: PoolAddress, timeout_s: float) -> None:
    """Return as soon as somebody listens at one of the addresses, or when the time is over: a pool that starts
    together with this agent is found within milliseconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s = 0.003
    while loop.time() < deadline:
        for server in address.servers:
            host, _, port = server.rpartition(":")
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                writer.close()
                return
        await asyncio.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.3)
