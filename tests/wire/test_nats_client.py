"""The NATS client against a real server: messages, requests, reconnecting, refusals and strangers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.wire.nats_client import LINE_LIMIT_BYTES, NatsClient, NatsError, NatsRefused, NoResponders

TOKEN = "secret"
LIMIT = 64 << 20
DEADLINE_S = 30.0


class Server:
    """A nats-server that can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        import json

        ports = self.folder / secrets.token_hex(4)
        ports.mkdir()
        config = self.folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port or -1}"\nmax_payload: 8MB\nauthorization {{ token: "{TOKEN}" }}\n'
        )
        program = Path(sys.executable).with_name("nats-server")
        self.process = subprocess.Popen(
            [str(program), "-c", str(config), "--ports_file_dir", str(ports)], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            for path in ports.glob("*.ports"):
                with contextlib.suppress(ValueError):
                    self.port = int(json.loads(path.read_text())["nats"][0].rpartition(":")[2])
                    return
            time.sleep(0.01)
        raise AssertionError("the nats-server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def client(address: str, token: str = TOKEN, limit: int = LIMIT):  # type: ignore[no-untyped-def]
    found = NatsClient([address], token, "test", pending_limit_bytes=limit)
    await found.connect(DEADLINE_S)
    try:
        yield found
    finally:
        await found.close()


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_messages_arrive_in_order_whatever_their_size(server: Server) -> None:
    sizes = [0, 1, 100, 70_000, 3, 8 * 1024 * 1024, 0, 2_000_000, 5] + [50] * 2000
    payloads = [secrets.token_bytes(min(size, 1000)) * (size // max(1, min(size, 1000))) for size in sizes]
    got: list[tuple[bytes, str]] = []
    async with client(server.address) as ours, client(server.address) as theirs:
        theirs.subscribe("here.*", lambda payload, reply: got.append((payload, reply)))
        await theirs.flush(DEADLINE_S)
        for number, payload in enumerate(payloads):
            assert ours.publish("here.x", payload, f"back.{number}")
            await ours.drain()
        await until(lambda: len(got) == len(payloads))
    assert got == [(payload, f"back.{number}") for number, payload in enumerate(payloads)]


async def test_requests_find_their_answers(server: Server) -> None:
    async with client(server.address) as ours, client(server.address) as theirs:
        theirs.subscribe("twice", lambda payload, reply: theirs.publish(reply, payload * 2), queue="all")
        await theirs.flush(DEADLINE_S)
        answers = await asyncio.gather(*(ours.request("twice", b"%d" % n, DEADLINE_S) for n in range(300)))
        assert answers == [b"%d" % n * 2 for n in range(300)]
        with pytest.raises(NoResponders):
            await ours.request("nobody", b"", DEADLINE_S)
        theirs.subscribe("silent", lambda payload, reply: None)
        await theirs.flush(DEADLINE_S)
        with pytest.raises(TimeoutError):
            await ours.request("silent", b"", 0.05)


async def test_a_queue_group_shares_and_unsubscribing_ends(server: Server) -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    async with client(server.address) as ours:
        one = ours.subscribe("work", lambda payload, reply: first.append(payload), queue="group")
        ours.subscribe("work", lambda payload, reply: second.append(payload), queue="group")
        for number in range(100):
            ours.publish("work", b"%d" % number)
        await ours.flush(DEADLINE_S)
        assert len(first) + len(second) == 100
        ours.unsubscribe(one)
        await ours.flush(DEADLINE_S)
        first.clear()
        for number in range(20):
            ours.publish("work", b"%d" % number)
        await ours.flush(DEADLINE_S)
        assert not first


async def test_a_handler_that_fails_stops_nothing(server: Server) -> None:
    got: list[bytes] = []
    said: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context["message"]))

    def handle(payload: bytes, reply: str) -> None:
        got.append(payload)
        if payload == b"1":
            raise ValueError("no")

    async with client(server.address) as ours:
        ours.subscribe("here", handle)
        for number in range(3):
            ours.publish("here", b"%d" % number)
        await ours.flush(DEADLINE_S)
    assert got == [b"0", b"1", b"2"]
    assert said == ["handler of here failed"]


async def test_a_dead_server_is_waited_for_and_what_was_sent_meanwhile_arrives(server: Server) -> None:
    got: list[bytes] = []
    events: list[str] = []
    async with client(server.address) as ours, client(server.address, limit=5000) as theirs:
        ours.on_disconnect = lambda: events.append("gone")
        ours.on_reconnect = lambda: events.append("back")
        ours.subscribe("here", lambda payload, reply: got.append(payload))
        await ours.flush(DEADLINE_S)
        server.kill()
        await until(lambda: not ours.is_connected and not theirs.is_connected)
        assert events == ["gone"]
        assert theirs.publish("here", b"kept")
        assert not theirs.publish("here", bytes(5000)), "what waits is bounded"
        server.start()
        await until(lambda: ours.is_connected and theirs.is_connected)
        assert events == ["gone", "back"]
        await until(lambda: theirs.publish("here", b"new") and b"new" in got)
        # A server that starts forgets who listens: 'kept' may come before our subscription does.
        assert set(got) <= {b"kept", b"new"}


async def test_a_wrong_token_is_refused_at_once(server: Server) -> None:
    stranger = NatsClient([server.address], "wrong", "test", pending_limit_bytes=LIMIT)
    with pytest.raises(NatsRefused, match="Authorization Violation"):
        await stranger.connect(DEADLINE_S)


async def test_a_message_over_the_limit_is_the_callers_error(server: Server) -> None:
    async with client(server.address) as ours:
        with pytest.raises(ValueError, match="over the server's limit"):
            ours.publish("here", bytes(8 * 1024 * 1024 + 1))
        await ours.flush(DEADLINE_S)


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * (LINE_LIMIT_BYTES + 2)])
async def test_what_is_no_nats_server_is_left(words: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    stranger = NatsClient([f"127.0.0.1:{port}"], TOKEN, "test", pending_limit_bytes=LIMIT)
    with pytest.raises(NatsError, match="is this a NATS server"):
        await stranger.connect(0.3)
    listener.close()


async def test_nobody_there_is_said_in_time() -> None:
    lonely = NatsClient(["127.0.0.1:9"], TOKEN, "test", pending_limit_bytes=LIMIT)
    with pytest.raises((OSError, TimeoutError)):
        await lonely.connect(0.2)


async def test_a_silent_server_does_not_hold_us(tmp_path: Path) -> None:
    listener = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    lonely = NatsClient([f"127.0.0.1:{port}"], TOKEN, "test", pending_limit_bytes=LIMIT)
    with pytest.raises(TimeoutError):
        await lonely.connect(0.2)
    listener.close()
