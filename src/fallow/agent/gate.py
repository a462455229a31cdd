"""The way out of a sandbox that has no network: connections go through the agent, which looks where each one leads.

A SOCKS server (RFC 1928, CONNECT alone) at a socket that listens inside the sandbox. Names are resolved here, and the
address that was looked at is the one that is connected to. What is not public is refused, but for what the owner has
named, and so is every port but those of the web.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import Collection

from fallow.sandbox.public import Network, is_public, own_networks

PORTS = (80, 443)
CONNECTIONS_LIMIT = 64
IDLE_S = 120.0
CONNECT_WITHIN_S = 20.0
PIECE_BYTES = 64 * 1024
_VERSION, _NO_PASSWORD, _CONNECT = 5, 0, 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_DONE, _FAILED, _NOT_ALLOWED, _NOT_KNOWN = 0, 1, 2, 7


class _Refused(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class Gate:
    """`named`: (host, port) pairs that are reached whatever their address. `limit_bytes`: of all that comes in."""

    def __init__(self, named: Collection[tuple[str, int]] = (), limit_bytes: int = 1 << 62) -> None:
        self._named = frozenset((host.lower(), port) for host, port in named)
        self._left = limit_bytes
        self._own: list[Network] = []
        self._server: asyncio.Server | None = None
        self._open = 0
        self.refused: set[str] = set()
        """Hosts, with their ports, that were not let through."""

    async def serve(self, listening: socket.socket) -> None:
        """Take the socket over: of the loopback inside, or of a carrier's."""
        self._own = await asyncio.to_thread(own_networks)
        listening.setblocking(False)
        serve = asyncio.start_unix_server if listening.family == socket.AF_UNIX else asyncio.start_server
        self._server = await serve(self._client, sock=listening, limit=PIECE_BYTES)

    async def close(self) -> None:
        """The other ends are gone already: what is open ends by itself."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        outside: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError, struct.error, UnicodeDecodeError):
                if self._open > CONNECTIONS_LIMIT:
                    return
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    host, port = await _asked(reader, writer)
                    try:
                        incoming, outside = await self._connect(host, port)
                    except _Refused as refused:
                        await _answer(writer, refused.code)
                        return
                    except OSError:
                        await _answer(writer, _FAILED)
                        return
                    await _answer(writer, _DONE)
                await self._carry(reader, writer, incoming, outside)
        finally:
            self._open -= 1
            for end in (writer, outside):
                if end is not None:
                    end.close()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        named = (host.lower(), port) in self._named
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        allowed = [
            address[0] for *_, address in found if named or (port in PORTS and is_public(str(address[0]), self._own))
        ]
        if not allowed:
            self.refused.add(f"{host}:{port}")
            raise _Refused(_NOT_ALLOWED)
        last: OSError | None = None
        for address in allowed:
            try:
                return await asyncio.open_connection(str(address), port, limit=PIECE_BYTES)
            except OSError as error:
                last = error
        raise last or OSError("no address")

    async def _carry(
        self,
        inner: asyncio.StreamReader,
        inside: asyncio.StreamWriter,
        outer: asyncio.StreamReader,
        outside: asyncio.StreamWriter,
    ) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(inner, outside, counted=False))
            group.create_task(self._pump(outer, inside, counted=True))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: bool) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            while self._left > 0:
                async with asyncio.timeout(IDLE_S):
                    piece = await source.read(PIECE_BYTES)
                if not piece:
                    break
                if counted:
                    self._left -= len(piece)
                sink.write(piece)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()
        if self._left <= 0:
            sink.close()


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    """Host and port. Raises EOFError where the other end does not speak SOCKS."""
    version, methods = await reader.readexactly(2)
    if version != _VERSION or _NO_PASSWORD not in await reader.readexactly(methods):
        raise EOFError
    writer.write(bytes((_VERSION, _NO_PASSWORD)))
    version, command, _, kind = await reader.readexactly(4)
    if kind == _NAME:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
    elif kind in (_IPV4, _IPV6):
        host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == _IPV4 else 16)))
    else:
        raise EOFError
    (port,) = struct.unpack(">H", await reader.readexactly(2))
    if version != _VERSION or command != _CONNECT or not host:
        await _answer(writer, _NOT_KNOWN)
        raise EOFError
    return host, port


async def _answer(writer: asyncio.StreamWriter, code: int) -> None:
    writer.write(bytes((_VERSION, code, 0, _IPV4)) + bytes(6))
    await writer.drain()
