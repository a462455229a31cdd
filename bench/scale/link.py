"""A NATS connection small enough for ten thousand of them in a process: the protocol's few lines on asyncio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

from fallow.wire.messages import Msg, decode, encode

CONNECT_TIMEOUT_S = 60.0


class SmallLink(asyncio.Protocol):
    """Connected once; a connection that ends stays so (`is_closed`)."""

    def __init__(self, token: str, on_message: Callable[[Any], None]) -> None:
        self._token = token
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._greeted = asyncio.get_running_loop().create_future()
        self._sid = 0
        self.is_closed = False

    async def ready(self) -> None:
        """Wait until the server has taken the token. Raises ConnectionError."""
        await asyncio.wait_for(self._greeted, CONNECT_TIMEOUT_S)

    def listen(self, subject: str) -> None:
        self._sid += 1
        self._write(b"SUB %s %d\r\n" % (subject.encode(), self._sid))

    def send(self, subject: str, message: Msg) -> None:
        data = encode(message)
        self._write(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(data), data))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self.is_closed:
            self._transport.write(data)

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class
        options = {"auth_token": self._token, "verbose": False, "lang": "bench", "version": "1", "protocol": 1}
        self._write(b"CONNECT %s\r\nPING\r\n" % json.dumps(options).encode())

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if not self._greeted.done():
            self._greeted.set_exception(ConnectionError(f"the server closed the connection: {error}"))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at = 0
        while (line_end := buffer.find(b"\r\n", at)) >= 0:
            if buffer.startswith(b"MSG ", at):
                begin = line_end + 2
                end = begin + int(buffer[at:line_end].rpartition(b" ")[2])
                if len(buffer) < end + 2:
                    break
                self._on_message(decode(buffer[begin:end]))
                at = end + 2
                continue
            if buffer.startswith(b"PING", at):
                self._write(b"PONG\r\n")
            elif buffer.startswith(b"PONG", at) and not self._greeted.done():
                self._greeted.set_result(None)
            elif buffer.startswith(b"-ERR", at) and not self._greeted.done():
                self._greeted.set_exception(ConnectionError(buffer[at:line_end].decode()))
            at = line_end + 2
        self._buffer = buffer[at:]


async def open_link(host: str, port: int, token: str, on_message: Callable[[Any], None]) -> SmallLink:
    _, link = await asyncio.get_running_loop().create_connection(lambda: SmallLink(token, on_message), host, port)
    await link.ready()
    return link
