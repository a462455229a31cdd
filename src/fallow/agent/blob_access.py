"""The node's way to the blob store, opened when it is first needed, and its cache of what came from afar."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.model.errors import PoolRefused
from fallow.model.ids import Digest
from fallow.model.job import Blob, Purpose
from fallow.wire import subjects
from fallow.wire.messages import GetPool, PoolInfo
from fallow.wire.repeats import AGAIN_S

if TYPE_CHECKING:
    from fallow.wire.blob_http import Pace
    from fallow.wire.blobs import BlobClient
    from fallow.wire.connection import Connection

log = logging.getLogger("fallow.agent")

IN_USE_S = 300.0
"""A cached blob that was asked for so recently is not removed."""
ASK_TIMEOUT_S = 5.0
TRANSFERS_LIMIT = 8
"""Blobs that are fetched at the same time."""
CACHE_BYTES = 20 * 1024**3
PRUNE_EVERY_BYTES = 1024**3


class BlobAccess:
    """Blobs by digest, as local files. `connection` gives the agent's connection once there is one."""

    def __init__(self, connection: Callable[[], Connection | None], cache: Path) -> None:
        self._connection = connection
        self._cache = cache
        self._client: asyncio.Task[BlobClient] | None = None
        self._fetches: dict[str, asyncio.Task[Path]] = {}
        self._fetched_bytes = 0
        self._transfers = asyncio.Semaphore(TRANSFERS_LIMIT)
        self.pool: PoolInfo | None = None
        self.pace: Pace | None = None
        """Holds the owner's rates; to be set before the first transfer."""
        self.make_room: Callable[[int], Awaitable[None]] | None = None
        """Frees so many bytes of the lent disk by removing what was used longest ago; raises PoolRefused in words
        where that is not enough."""

    async def pool_info(self) -> PoolInfo:
        """What the pool says of itself; asks until a coordinator answers."""
        while self.pool is None:
            connection = self._connection()
            if connection is not None:
                with contextlib.suppress(TimeoutError):
                    answer = await connection.request(subjects.POOL, GetPool(), ASK_TIMEOUT_S, AGAIN_S)
                    if isinstance(answer, PoolInfo):
                        self.pool = answer
                        return answer
            await asyncio.sleep(0.1)
        return self.pool

    async def client(self) -> BlobClient:
        """The client of the store; asks the pool for it as long as it takes."""
        if self._client is None or (
            self._client.done() and (self._client.cancelled() or self._client.exception() is not None)
        ):
            self._client = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._client)

    @property
    def is_local(self) -> bool:
        """The store is a folder of this machine. While that is not known it is found out, and the answer is no."""
        if self._client is None:
            self._client = asyncio.ensure_future(self._open())
            self._client.add_done_callback(lambda done: done.cancelled() or done.exception())
        client = self._client
        return client.done() and not client.cancelled() and client.exception() is None and client.result().is_local

    async def _open(self) -> BlobClient:
        from fallow.wire.blobs import open_blob_client

        pool = await self.pool_info()
        connection = self._connection()
        assert connection is not None
        return await open_blob_client(connection, pool, self.pace)

    def fetch_ahead(self, digest: str, size: int) -> None:
        """Begin to fetch what will be asked for soon. Whoever asks hears of it where that fails."""
        self._fetching(digest, size).add_done_callback(lambda done: done.cancelled() or done.exception())

    async def path(self, digest: str, size: int) -> Path:
        """A local file with the blob's bytes, fetched now if need be; however many ask, it is fetched once."""
        return await asyncio.shield(self._fetching(digest, size))

    def _fetching(self, digest: str, size: int) -> asyncio.Task[Path]:
        fetch = self._fetches.get(digest)
        if fetch is None:
            fetch = asyncio.ensure_future(self._fetch(digest, size))
            self._fetches[digest] = fetch
            fetch.add_done_callback(lambda _task: self._fetches.pop(digest, None))
        return fetch

    async def _fetch(self, digest: str, size: int) -> Path:
        client = await self.client()
        async with self._transfers:
            path = await self._fetch_into(client, digest, size)
        if self._cache in path.parents:
            with contextlib.suppress(OSError):
                os.utime(path)
            self._fetched_bytes += size
            if self.make_room is not None:
                return path
            if self._fetched_bytes >= PRUNE_EVERY_BYTES:
                self._fetched_bytes = 0
                await asyncio.to_thread(prune, self._cache, CACHE_BYTES, time.time())
        return path

    async def _fetch_into(self, client: BlobClient, digest: str, size: int) -> Path:
        if self.make_room is None or client.is_local or (self._cache / digest).exists():
            return Path(await client.fetch_file(Digest(digest), size, self._cache))
        await self.make_room(size)
        try:
            return Path(await client.fetch_file(Digest(digest), size, self._cache))
        except PoolRefused as error:
            if error.kind != "store_full":
                raise
        # Somebody else filled the disk meanwhile: free what can be freed, and try once more.
        await self.make_room(size)
        return Path(await client.fetch_file(Digest(digest), size, self._cache))

    async def bytes_of(self, blob: Blob) -> bytes:
        """The blob's bytes: inline, or read from a local file."""
        if blob.data is not None:
            return bytes(blob.data)
        path = await self.path(blob.digest, blob.size)
        return await asyncio.get_running_loop().run_in_executor(None, path.read_bytes)

    async def store(self, path: str, digest: str, size: int, durable: bool, purpose: Purpose) -> None:
        """Move a file into the store. Raises when that fails: then the file is still there. `durable`: as
        BlobClient has it."""
        client = await self.client()
        await client.put_file(Path(path), digest=Digest(digest), size=size, move=True, durable=durable, purpose=purpose)

    async def close(self) -> None:
        for task in (self._client, *self._fetches.values()):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if self._client is not None and not self._client.cancelled() and self._client.exception() is None:
            await self._client.result().close()


def prune(folder: Path, limit_bytes: int, now_unix_s: float) -> None:
    """Remove the files used longest ago until the folder holds at most limit_bytes."""
    found: list[tuple[float, int, str]] = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                about = os.stat(path)
                found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for used_s, size, path in sorted(found):
        if total <= limit_bytes or now_unix_s - used_s < IN_USE_S:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size
