"""The way out of a sandbox that has no network: connections go through the agent, which looks where each one leads.

A proxy at a socket that listens inside the sandbox: HTTP's (CONNECT, and requests that name the whole address), which
every library speaks, and SOCKS (RFC 1928, CONNECT alone). Names are resolved here, and the address that was looked at
is the one that is connected to. What is not public is refused, but for what the owner has named.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Collection
from typing import NamedTuple
from urllib.parse import urlsplit

from fallow.sandbox.public import Network, is_public, own_networks

PORTS = (80, 443)
CONNECTIONS_LIMIT = 64
IDLE_S = 120.0
CONNECT_WITHIN_S = 20.0
PIECE_BYTES = 64 * 1024
_VERSION, _NO_PASSWORD, _CONNECT = 5, 0, 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_DONE, _FAILED, _NOT_ALLOWED, _NOT_KNOWN = 0, 1, 2, 7
_HTTP_WORDS = {
    _FAILED: "502 The other end does not answer",
    _NOT_ALLOWED: "403 No such name or its address is not public",
    _NOT_KNOWN: "400 This is no request to a proxy",
}
HEAD_BYTES = 32 * 1024
_BETWEEN_PROXIES = (b"proxy-", b"connection:", b"keep-alive:")
"""What a request says to its proxy."""


class _Asked(NamedTuple):
    """What somebody wants. `done` and `refused` are how to say so; `ahead` goes to the other end first."""

    host: str
    port: int
    done: bytes
    refused: Callable[[int], bytes]
    ahead: bytes = b""


class _Refused(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


def received(channel: socket.socket) -> socket.socket | None:
    """The listening socket that a sandbox's launcher has sent, if it has started; it has sent it before it said so."""
    channel.setblocking(False)
    with contextlib.suppress(OSError):
        _, descriptors, _, _ = socket.recv_fds(channel, 16, 1)
        if descriptors:
            return socket.socket(fileno=descriptors[0])
    return None


class Gate:
    """`named`: (host, port) pairs that are reached whatever their address. `limit_bytes`: of all that comes in.
    `ports`: those of public addresses that are reached; None: all."""

    def __init__(
        self,
        named: Collection[tuple[str, int]] = (),
        limit_bytes: int = 1 << 62,
        ports: Collection[int] | None = PORTS,
    ) -> None:
        self._ports = ports
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

    def end(self) -> None:
        """The other ends are gone already: what is open ends by itself."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        self.end()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        outside: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError, struct.error, UnicodeDecodeError):
                if self._open > CONNECTIONS_LIMIT:
                    return
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    asked = await _asked(reader, writer)
                    try:
                        incoming, outside = await self._connect(asked.host, asked.port)
                    except _Refused as refused:
                        await _answer(writer, asked.refused(refused.code))
                        return
                    except OSError:
                        await _answer(writer, asked.refused(_FAILED))
                        return
                    outside.write(asked.ahead)
                    await _answer(writer, asked.done)
                await self._carry(reader, writer, incoming, outside)
        finally:
            self._open -= 1
            for end in (writer, outside):
                if end is not None:
                    end.close()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        named = (host.lower(), port) in self._named
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            # Told apart from what is refused, it would tell which names the owner's network has.
            found = []
        is_open = self._ports is None or port in self._ports
        allowed = [address[0] for *_, address in found if named or (is_open and is_public(str(address[0]), self._own))]
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


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Asked:
    """Raises EOFError where the other end does not speak to a proxy."""
    first = await reader.readexactly(1)
    if first[0] == _VERSION:
        return await _asked_socks(reader, writer)
    return await _asked_http(first, reader, writer)


async def _asked_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Asked:
    (methods,) = await reader.readexactly(1)
    if _NO_PASSWORD not in await reader.readexactly(methods):
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
        await _answer(writer, _of_socks(_NOT_KNOWN))
        raise EOFError
    return _Asked(host, port, _of_socks(_DONE), _of_socks)


def _of_socks(code: int) -> bytes:
    return bytes((_VERSION, code, 0, _IPV4)) + bytes(6)


async def _asked_http(first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Asked:
    try:
        head = first + await reader.readuntil(b"\r\n\r\n")
        if len(head) > HEAD_BYTES:
            raise ValueError("too long")
        line, *fields = head[:-4].split(b"\r\n")
        method, target, version = line.decode("ascii").split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = parts.hostname or "", parts.port or (0 if method == "CONNECT" else 80)
        if not host or not port or parts.scheme not in (("",) if method == "CONNECT" else ("http",)):
            raise ValueError("no address")
    except (ValueError, asyncio.LimitOverrunError):
        await _answer(writer, _of_http(_NOT_KNOWN))
        raise EOFError from None
    if method == "CONNECT":
        return _Asked(host, port, b"HTTP/1.1 200 Connected\r\n\r\n", _of_http)
    # One request for each connection: the next may be for another host.
    path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    kept = [field for field in fields if not field.lower().startswith(_BETWEEN_PROXIES)]
    ahead = b"\r\n".join((f"{method} {path} {version}".encode(), *kept, b"Connection: close", b"", b""))
    return _Asked(host, port, b"", _of_http, ahead)


def _of_http(code: int) -> bytes:
    words = _HTTP_WORDS[code]
    return f"HTTP/1.1 {words}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


async def _answer(writer: asyncio.StreamWriter, words: bytes) -> None:
    writer.write(words)
    await writer.drain()
