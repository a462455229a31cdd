"""The way out of a sandbox: a real SOCKS client's bytes, real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from fallow.agent.gate import Gate

WITHIN_S = 30.0
NOT_ALLOWED = 2


@pytest.fixture
async def echo() -> AsyncIterator[tuple[int, list[bytes]]]:
    """Its port on the loopback, and what came in."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.write(heard[-1].upper() * 1000)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], heard
    server.close()


async def ask(gate: Gate, host: str, port: int, words: bytes = b"ping") -> tuple[int, bytes]:
    """SOCKS' answer, and what came back."""
    listening = socket.create_server(("127.0.0.1", 0))
    where = listening.getsockname()
    await gate.serve(listening)
    try:
        async with asyncio.timeout(WITHIN_S):
            reader, writer = await asyncio.open_connection(*where)
            name = host.encode()
            writer.write(b"\5\1\0" + b"\5\1\0\3" + bytes((len(name),)) + name + port.to_bytes(2, "big"))
            assert await reader.readexactly(2) == b"\5\0"
            code = (await reader.readexactly(10))[1]
            if code == 0:
                writer.write(words)
                writer.write_eof()
            came = await reader.read() if code == 0 else b""
            writer.close()
            return code, came
    finally:
        await gate.close()


async def test_what_the_owner_named_is_reached(echo: tuple[int, list[bytes]]) -> None:
    port, heard = echo
    gate = Gate([("LocalHost", port)])
    assert await ask(gate, "localhost", port) == (0, b"PING" * 1000)
    assert heard == [b"ping"]
    assert gate.refused == set()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "10.1.2.3", "169.254.169.254"])
async def test_what_is_not_public_is_refused(host: str, echo: tuple[int, list[bytes]]) -> None:
    port, heard = echo
    for wanted in (port, 80, 443):
        gate = Gate([("named.example", port)])
        assert await ask(gate, host, wanted) == (NOT_ALLOWED, b"")
        assert gate.refused == {f"{host}:{wanted}"}
    assert heard == []


async def test_of_public_addresses_only_the_webs_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    assert await ask(gate, "9.9.9.9", 22) == (NOT_ALLOWED, b"")
    assert gate.refused == {"9.9.9.9:22"}


async def test_more_than_may_come_in_is_cut_off(echo: tuple[int, list[bytes]]) -> None:
    port, _ = echo
    code, came = await ask(Gate([("127.0.0.1", port)], limit_bytes=100), "127.0.0.1", port)
    assert code == 0
    assert len(came) < 4000 + 1


async def talk(gate: Gate, said: bytes) -> bytes:
    """All that comes back."""
    listening = socket.create_server(("127.0.0.1", 0))
    where = listening.getsockname()
    await gate.serve(listening)
    try:
        async with asyncio.timeout(WITHIN_S):
            reader, writer = await asyncio.open_connection(*where)
            writer.write(said)
            writer.write_eof()
            came = await reader.read()
            writer.close()
            return came
    finally:
        await gate.close()


async def test_http_tunnels_and_requests_are_carried(echo: tuple[int, list[bytes]]) -> None:
    port, heard = echo
    came = await talk(Gate([("localhost", port)]), f"CONNECT localhost:{port} HTTP/1.1\r\n\r\nping".encode())
    assert came == b"HTTP/1.1 200 Connected\r\n\r\n" + b"PING" * 1000
    head = f"GET http://localhost:{port}/a/b?c=1 HTTP/1.1\r\nHost: localhost\r\nProxy-Authorization: x\r\n"
    await talk(Gate([("localhost", port)]), f"{head}Connection: keep-alive\r\n\r\n".encode())
    assert heard[1] == b"GET /a/b?c=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "no-such.invalid"])
async def test_what_is_not_public_is_refused_as_what_is_not_there(echo: tuple[int, list[bytes]], host: str) -> None:
    port, heard = echo
    gate = Gate(ports=None)
    for line in (f"CONNECT {host}:{port} HTTP/1.1", f"GET http://{host}:{port}/ HTTP/1.1"):
        assert (await talk(gate, f"{line}\r\n\r\n".encode())).startswith(b"HTTP/1.1 403 No such name or its address")
    assert heard == []


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET https://localhost/ HTTP/1.1\r\n\r\n",
        b"CONNECT localhost HTTP/1.1\r\n\r\n",
        b"GET http://localhost:99999999/ HTTP/1.1\r\n\r\n",
        b"\xff\xff\r\n\r\n",
        b"x" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_request_to_a_proxy_is_refused(said: bytes) -> None:
    assert (await talk(Gate(ports=None), said)).startswith(b"HTTP/1.1 400 ")
