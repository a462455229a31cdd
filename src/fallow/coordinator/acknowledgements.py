"""What agents may forget, told a little later: nobody waits for it, and many go in one message, or with a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fallow.model.ids import JobId, NodeId, Token
from fallow.wire.messages import HandInAck

ACK_AFTER_S = 1.0
"""Mostly the node's next lease takes it along before. With the time for which results are gathered, well below the time
after which an agent hands in again."""
CROWD = 16
"""So many for one node do not wait that long: they hold memory there."""
CROWD_AFTER_S = 0.1
ACKS_LIMIT = 512

Acks = tuple[tuple[Token, int], ...]


class Acknowledgements:
    """Of one job. `send` tells a node."""

    __slots__ = ("_due_s", "_epoch", "_job_id", "_loop", "_send", "_timer", "_waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        job_id: JobId,
        epoch: int,
        send: Callable[[NodeId, HandInAck], None],
    ) -> None:
        self._loop = loop
        self._job_id = job_id
        self._epoch = epoch
        self._send = send
        self._waiting: dict[NodeId, list[tuple[Token, int]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def add(self, node_id: NodeId, token: Token, seq: int) -> None:
        """It is durable: the node may hear of it."""
        pairs = self._waiting.setdefault(node_id, [])
        pairs.append((token, seq))
        if len(pairs) >= ACKS_LIMIT:
            self._say(node_id)
        elif self._timer is None:
            self._flush_in(ACK_AFTER_S)
        elif len(pairs) == CROWD and self._due_s > self._loop.time() + CROWD_AFTER_S:
            self._timer.cancel()
            self._flush_in(CROWD_AFTER_S)

    def take(self, node_id: NodeId) -> Acks:
        """What waits for the node, for a message that goes there anyway."""
        pairs = self._waiting.pop(node_id, ())
        if not self._waiting:
            self._stop()
        return tuple(pairs)

    def flush(self) -> None:
        """Tell all of it now."""
        self._stop()
        for node_id in list(self._waiting):
            self._say(node_id)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush_in(self, wait_s: float) -> None:
        self._due_s = self._loop.time() + wait_s
        self._timer = self._loop.call_later(wait_s, self.flush)

    def _say(self, node_id: NodeId) -> None:
        self._send(node_id, HandInAck(self._job_id, self._epoch, self.take(node_id)))
