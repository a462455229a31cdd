"""A served blob folder, clients for it, and a proxy that cuts connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fallow.coordinator.blob_server import BlobServer
from fallow.wire.blob_files import BlobFiles
from fallow.wire.blob_http import HttpBlobs
from fallow.wire.blobs import BlobClient, local_blob_client

SECRET = "the pool's secret"


class Proxy:
    """A TCP proxy that closes connections after so many bytes in one direction; `cuts` is taken from the front, and
    connections beyond it go through unharmed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.cuts: list[int] = []
        self.made = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        limit = [self.cuts.pop(0) if self.cuts else 1 << 62]
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        ways = [
            asyncio.create_task(self._pass(reader, upstream_writer, limit)),
            asyncio.create_task(self._pass(upstream_reader, writer, limit)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, upstream_writer):
            end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                limit[0] -= len(data)
                if limit[0] < 0:
                    return
                writer.write(data)
                await writer.drain()


class Served:
    """A server, and what tests need of it. `now` is added to the server's clock."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.server = BlobServer(folder, SECRET, durable=False, clock=lambda: time.time() + self.now)
        self.files = self.server.files
        self.proxy: Proxy | None = None
        self.signed = 0
        self._clients: list[BlobClient] = []

    async def sign(self, method: str, digest: str, size: int) -> str:
        self.signed += 1
        url = self.server.sign(method, digest, size, time.time() + self.now)
        if self.proxy is not None:
            port = self.server.base_url.rsplit(":", 1)[1]
            url = url.replace(f":{port}/", f":{self.proxy.port}/")
        return url

    def client(self, attempts: int = 8) -> BlobClient:
        """One that has to go through HTTP."""
        client = BlobClient(None, HttpBlobs(self.sign, backoff_s=0.01, attempts=attempts))
        self._clients.append(client)
        return client

    def local(self) -> BlobClient:
        return local_blob_client(self.files)

    async def with_proxy(self, *cuts: int) -> Proxy:
        self.proxy = Proxy(int(self.server.base_url.rsplit(":", 1)[1]))
        self.proxy.cuts = list(cuts)
        await self.proxy.start()
        return self.proxy

    async def end(self) -> None:
        for client in self._clients:
            await client.close()
        if self.proxy is not None:
            await self.proxy.stop()
        await self.server.stop()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    running = Served(tmp_path / "blobs")
    await running.server.start("127.0.0.1", 0)
    yield running
    await running.end()


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    made = BlobFiles(tmp_path / "blobs")
    made.prepare()
    return made


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)
