"""Fallow used inside a task: requests go through the agent, and a task that waits lends its slot.

A task that starts nested work asks to lend its slot first. Where that is granted the work runs in the pool; where it
is not (the bound is reached) it runs right here, in the task itself. So nesting can be slow but never deadlocks.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fallow.model.errors import PoolRefused

if TYPE_CHECKING:
    from fallow.model.job import Blob
    from fallow.sdk.transport import BridgeTransport


class Lending:
    """Counts the nested work under way in this task; the slot is lent while there is any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def begin(self, bridge: Any) -> bool:
        """Say whether nested work may go to the pool. If so, call `end` when it is over."""
        with self._lock:
            if self._users == 0 and not _ask_waiting(bridge, True):
                return False
            self._users += 1
            return True

    def end(self, bridge: Any) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _ask_waiting(bridge, False)


def _ask_waiting(bridge: Any, waits: bool) -> bool:
    answer = bridge.ask("waiting", msgspec.msgpack.encode(waits))
    return bool(answer and msgspec.msgpack.decode(answer))


lending = Lending()


class NestedBlobs:
    """Large pages of nested work: the agent puts (all of it durable) and fetches the files."""

    local_files = None

    def __init__(self, transport: BridgeTransport) -> None:
        self._transport = transport

    def at_hand(self, blob: Blob) -> Any:
        return blob.data

    async def put_segments(self, segments: list[Any], *, durable: bool = True, purpose: Any = None) -> Blob:
        """What it is for is not told: the agent keeps all as objects."""
        from fallow.model.job import INLINE_LIMIT_BYTES, Blob
        from fallow.wire.blobs import hash_segments

        digest, size = hash_segments(segments)
        if size <= INLINE_LIMIT_BYTES:
            return Blob(digest, size, b"".join(segments))
        handle, path = tempfile.mkstemp(prefix="fallow-nested-")
        with os.fdopen(handle, "wb") as file:
            for segment in segments:
                file.write(segment)
        await self._put(path, digest, size)
        return Blob(digest, size)

    async def put_file(self, path: Any, *, durable: bool = True) -> Blob:
        import shutil

        from fallow.model.job import Blob
        from fallow.wire.blobs import hash_segments

        handle, copy = tempfile.mkstemp(prefix="fallow-nested-")
        os.close(handle)
        await asyncio.get_running_loop().run_in_executor(None, shutil.copyfile, path, copy)
        with open(copy, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            view: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        digest, size = hash_segments([view])
        await self._put(copy, digest, size)
        return Blob(digest, size)

    async def sync(self, digests: Sequence[str]) -> None:
        """All is durable already."""

    async def _put(self, path: str, digest: str, size: int) -> None:
        try:
            if not await self._transport.ask("put", msgspec.msgpack.encode([path, digest, size])):
                raise PoolRefused(
                    f"the pool cannot keep the {size:,} bytes that this task sends: its disk may be full, or its blob "
                    "store away.",
                    "unavailable",
                )
        finally:
            Path(path).unlink(missing_ok=True)

    async def fetch(self, blob: Blob) -> Any:
        if blob.data is not None:
            return blob.data
        answer = await self._transport.ask("blob", msgspec.msgpack.encode([blob.digest, blob.size]))
        path = msgspec.msgpack.decode(answer)
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    async def close(self) -> None:
        """The agent holds the connections."""
