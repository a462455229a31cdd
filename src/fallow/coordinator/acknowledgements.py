"""What agents may forget, told a little later: nobody waits for it, and many go in one message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fallow.model.ids import JobId, NodeId, Token
from fallow.wire.messages import HandInAck

ACK_AFTER_S = 0.1
"""Far below the time after which an agent hands in again."""
ACKS_LIMIT = 512


class Acknowledgements:
    """Of one job. `send` tells a node."""

    __slots__ = ("_epoch", "_job_id", "_loop", "_send", "_waiting")

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

    def add(self, node_id: NodeId, token: Token, seq: int) -> None:
        if not self._waiting:
            self._loop.call_later(ACK_AFTER_S, self.flush)
        pairs = self._waiting.setdefault(node_id, [])
        pairs.append((token, seq))
        if len(pairs) >= ACKS_LIMIT:
            del self._waiting[node_id]
            self._say(node_id, pairs)

    def flush(self) -> None:
        """Tell all of it now."""
        waiting, self._waiting = self._waiting, {}
        for node_id, pairs in waiting.items():
            self._say(node_id, pairs)

    def _say(self, node_id: NodeId, pairs: list[tuple[Token, int]]) -> None:
        self._send(node_id, HandInAck(self._job_id, self._epoch, tuple(pairs)))
