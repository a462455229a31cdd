"""Answers what workers ask of the node: see WorkerCallbacks.asked for the kinds.

An empty answer says that the thing cannot be had.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from fallow.agent.relay import Answer

if TYPE_CHECKING:
    from fallow.agent.blob_access import BlobAccess
    from fallow.agent.lane import Seat

log = logging.getLogger("fallow.agent")

NOTHING = b""


class Desk:
    """One for the node. `describe` tells what a nested SDK must know besides its client id."""

    def __init__(self, blobs: BlobAccess, describe: Callable[[], dict[str, str]]) -> None:
        self._blobs = blobs
        self._describe = describe
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, seat: Seat, kind: str, body: bytes, answer: Answer) -> None:
        try:
            match kind:
                case "request":
                    seat.relay.request(body, answer)
                case "publish":
                    seat.relay.publish(body)
                    answer(NOTHING)
                case "waiting":
                    waiting = msgspec.msgpack.decode(body, type=bool)
                    answer(msgspec.msgpack.encode(seat.lane.slot.lend(seat.lane, waiting)))
                case "pool":
                    self._start(self._pool(seat, answer), answer)
                case "blob":
                    digest, size = msgspec.msgpack.decode(body, type=tuple[str, int])
                    self._start(self._blob(digest, size, answer), answer)
                case "put":
                    path, digest, size = msgspec.msgpack.decode(body, type=tuple[str, str, int])
                    self._start(self._put(path, digest, size, answer), answer)
                case _:
                    log.warning("a worker asked for %r, which this agent does not know", kind)
                    answer(NOTHING)
        except msgspec.DecodeError as error:
            log.warning("a worker asked for %r in a way that cannot be read: %s", kind, error)
            answer(NOTHING)

    async def _pool(self, seat: Seat, answer: Answer) -> None:
        client_id = await seat.relay.new_client()
        answer(msgspec.msgpack.encode({**self._describe(), "client_id": client_id}))

    async def _blob(self, digest: str, size: int, answer: Answer) -> None:
        answer(str(await self._blobs.path(digest, size)).encode())

    async def _put(self, path: str, digest: str, size: int, answer: Answer) -> None:
        await self._blobs.store(path, digest, size)
        answer(msgspec.msgpack.encode(True))

    def _start(self, work: Coroutine[Any, Any, None], answer: Answer) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                answer(NOTHING)
            elif task.exception() is not None:
                log.warning("a task's request cannot be met: %s", task.exception())
                answer(NOTHING)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
