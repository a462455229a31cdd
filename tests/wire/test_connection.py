"""The connection over a real server: messages take the short way, nothing is lost in order, silence is an error."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fallow.model.errors import PoolRefused, PoolUnreachable
from fallow.wire.address import PoolAddress
from fallow.wire.connection import (
    PING_CLUSTER_S,
    PING_EVERY_S,
    PING_OFTEN_S,
    PINGS_UNANSWERED,
    Connection,
    connect,
)
from fallow.wire.direct_client import TRY_FIRST_S, WRITE_NOW_EVERY_S, DirectClient
from fallow.wire.messages import Done, GetPool, LogLine, NodeLog
from tests.coordinator.conftest import connection as connection
from tests.coordinator.conftest import nats as nats
from tests.coordinator.parts import Inbox, NatsProcess


async def test_messages_go_from_the_socket_to_their_handler_and_back(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, taken = [], []
    write_now, take_messages = DirectClient._write_now, DirectClient._take_messages

    def watched_write(self: DirectClient, publications: Sequence[tuple[str, bytes]]) -> bool:
        done = write_now(self, publications)
        written.append(done)
        return done

    def watched_take(self: DirectClient, data: bytes) -> int:
        done = take_messages(self, data)
        taken.append(done == len(data))
        return done

    inbox = Inbox()
    await connection.subscribe("here", inbox)
    await connection.flush()
    monkeypatch.setattr(DirectClient, "_write_now", watched_write)
    monkeypatch.setattr(DirectClient, "_take_messages", watched_take)
    connection.send("here", Done(7))
    assert (await inbox.take(Done)).epoch == 7
    assert written == [True], "nats-py has changed what it keeps of what is to be written"
    assert taken == [True], "nats-py does not read through the stream reader's feed_data any more"


async def test_threads_write_whole_messages_beside_the_loop(connection: Connection) -> None:
    inbox = Inbox()
    await connection.subscribe("here", inbox)
    await connection.flush()

    def message(thread: int, number: int) -> NodeLog:
        line = LogLine(number, "n", 0, "stdout", "x" * (number % 40_000))
        return NodeLog(f"job-{thread}", str(number), (line,))  # type: ignore[arg-type]

    def write(thread: int) -> int:
        return sum(connection.send_now(("here", message(thread, number))) for number in range(3000))

    threads = [asyncio.create_task(asyncio.to_thread(write, thread)) for thread in range(3)]
    sent = 0
    while not all(thread.done() for thread in threads):
        connection.send("here", message(9, sent * 37 % 400_000))
        sent += 1
        await asyncio.sleep(0)
    written = sum([await thread for thread in threads])
    assert written > 0
    seen: dict[str, int] = {}
    for _ in range(sent + written):
        came = await inbox.take(NodeLog)
        seen[came.job_id] = seen.get(came.job_id, 0) + 1
        assert len(came.lines[0].text) == int(came.node) % 40_000
    assert seen["job-9"] == sent


async def test_what_is_sent_together_goes_by_one_write_in_its_order(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox()
    await connection.subscribe("here", inbox)
    await connection.flush()
    write_now, counts = DirectClient._write_now, []

    def watched_write(self: DirectClient, publications: Sequence[tuple[str, bytes]]) -> bool:
        counts.append(len(publications))
        return write_now(self, publications)

    monkeypatch.setattr(DirectClient, "_write_now", watched_write)
    with connection.together():
        connection.send("here", Done(1))
        with connection.together():
            connection.send("here", Done(2))
    assert counts == [2]
    with connection.together():
        connection.send("here", Done(3))
        connection.send("here", Done(4), "answer.to.this")  # goes by itself, not before what was sent before it
        connection.send("here", Done(5))
        for number in range(6, 30):
            connection.send("here", NodeLog("job", str(number), (LogLine(0, "n", 0, "stdout", "x" * 9000),)))  # type: ignore[arg-type]
    assert [(await inbox.take(Done)).epoch for _ in range(5)] == [1, 2, 3, 4, 5]
    assert [int((await inbox.take(NodeLog)).node) for _ in range(24)] == list(range(6, 30)), "too much for one write"


async def paced(connection: Connection) -> tuple[asyncio.Event, Inbox]:
    """(set once it is lost, what comes on 'here')."""
    lost = asyncio.Event()
    connection.on_disconnect.append(lost.set)
    inbox = Inbox()
    await connection.subscribe("here", inbox)
    await connection.flush()
    connection.pace()
    return lost, inbox


async def test_a_paced_connection_asks_a_silent_server_only_and_leaves_one_that_does_not_answer(
    nats: NatsProcess, connection: Connection
) -> None:
    lost, inbox = await paced(connection)
    asked: list[bool] = []
    ask = connection._client._send_ping

    async def watched(future: object = None) -> None:
        asked.append(True)
        await ask()

    connection._client._send_ping = watched  # type: ignore[method-assign, assignment]
    for number in range(5):
        connection.send("here", Done(number))
        await inbox.take(Done)
        connection.keep_alive()
    await asyncio.sleep(0)
    assert asked == []
    nats.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(PINGS_UNANSWERED + 1):
            assert not lost.is_set()
            connection.keep_alive()
            await asyncio.sleep(0)
        assert len(asked) == PINGS_UNANSWERED
        async with asyncio.timeout(30.0):
            await lost.wait()
    finally:
        nats.process.send_signal(signal.SIGCONT)


async def test_a_server_that_does_not_answer_is_left_however_rarely_one_looks(
    nats: NatsProcess, connection: Connection
) -> None:
    lost, inbox = await paced(connection)
    connection.ping_every_s = 0.2
    connection.keep_alive(press=True)
    async with asyncio.timeout(30.0):
        while connection._client._unanswered is not None:
            await asyncio.sleep(0.005)
    assert connection._client._pings_outstanding == 0, "it answered, and is not asked again"
    connection.send("here", Done(1))
    await inbox.take(Done)
    async with asyncio.timeout(30.0):
        while connection._client._pongs:  # an answer that is late would count as a word of it
            await asyncio.sleep(0.005)
    nats.process.send_signal(signal.SIGSTOP)
    try:
        connection.keep_alive(press=True)  # it spoke since the last time
        connection.keep_alive(press=True)
        async with asyncio.timeout(30.0):
            await lost.wait()
    finally:
        nats.process.send_signal(signal.SIGCONT)


async def test_a_server_that_reads_nothing_for_a_while_stops_nobody_and_loses_nothing(
    nats: NatsProcess, connection: Connection
) -> None:
    lost, inbox = await paced(connection)
    line = LogLine(0, "n", 0, "stdout", "x" * 60_000)
    sent = tries = 0
    nats.process.send_signal(signal.SIGSTOP)
    try:
        while not connection._client._rest and tries < 2_000:
            tries += 1
            sent += connection.send_now(("here", NodeLog("job", str(sent), (line,))))  # type: ignore[arg-type]
            time.sleep(WRITE_NOW_EVERY_S)
        for _ in range(3):
            connection.send("here", NodeLog("job", str(sent), (line,)))  # type: ignore[arg-type]
            sent += 1
    finally:
        nats.process.send_signal(signal.SIGCONT)
    assert tries < 2_000, "the socket took a part of no message: this has tested nothing"
    assert [(await inbox.take(NodeLog)).node for _ in range(sent)] == [str(number) for number in range(sent)]
    assert not lost.is_set()


async def test_messages_of_all_sizes_keep_their_order_on_whatever_way(connection: Connection) -> None:
    inbox = Inbox()
    plain: list[int] = []
    await connection.subscribe("here", inbox)

    async def library(message: object) -> None:
        plain.append(1)

    await connection._client.subscribe("there", cb=library)
    sizes = [1, 70_000, 3, 400_000, 5000, 2, 60_000, 1_000_000, 10]
    for number in range(200):
        line = LogLine(0, "n", 0, "stdout", "x" * sizes[number % len(sizes)])
        connection.send("here", NodeLog("job-aaaaaa", str(number), (line,)))  # type: ignore[arg-type]
        connection.send("there", Done(number))
        if number % 7 == 0:
            await asyncio.sleep(0)
    for number in range(200):
        message = await inbox.take(NodeLog)
        assert message.node == str(number)
        assert len(message.lines[0].text) == sizes[number % len(sizes)]
    await connection.flush()
    while len(plain) < 200:
        await asyncio.sleep(0.01)


async def test_a_flush_ends_after_what_was_subscribed_before_it_is_known(
    nats: NatsProcess, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a message that another sends right after it would go to nobody."""
    transport = connection._client._transport
    sent: list[bytes] = []
    write, writelines = transport.write, transport.writelines
    monkeypatch.setattr(transport, "write", lambda data: (sent.append(bytes(data)), write(data)))
    monkeypatch.setattr(transport, "writelines", lambda lines: (sent.extend(map(bytes, lines)), writelines(lines)))
    other = await connect(nats.address, "other")
    inbox = Inbox()
    for number in range(20):
        await connection.subscribe(f"here.{number}", inbox)
        await connection.flush()
        other.send(f"here.{number}", Done(number))
        assert (await inbox.take(Done)).epoch == number
    await other.close()
    words = b"".join(sent).decode()
    assert words.index("SUB here.0 ") < words.index("PING"), words[:200]


async def test_many_messages_keep_their_order_beyond_the_librarys_buffer(connection: Connection) -> None:
    inbox = Inbox()
    await connection.subscribe("here", inbox)
    line = LogLine(0, "n", 0, "stdout", "x" * 1000)
    for number in range(6000):
        connection.send("here", NodeLog("job-aaaaaa", str(number), (line,)))  # type: ignore[arg-type]
    for number in range(6000):
        assert (await inbox.take(NodeLog)).node == str(number)


async def test_requests_are_answered_each_by_its_own_and_silence_is_a_timeout(connection: Connection) -> None:
    def answer(message: Done, reply: str) -> None:
        connection.send(reply, Done(message.epoch + 1))

    await connection.subscribe("plus", answer)
    answers = await asyncio.gather(*(connection.request("plus", Done(n), 30.0) for n in range(200)))
    assert [a.epoch for a in answers] == list(range(1, 201))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await connection.request("nobody", GetPool(), 60.0)
    assert time.monotonic() - began < 30.0, "the server says at once that nobody listens"


async def test_a_request_that_waits_is_sent_again(connection: Connection) -> None:
    heard: list[str] = []

    def answer(message: Done, reply: str) -> None:
        heard.append(reply)
        if len(heard) == 3:  # the first ones went to somebody who is stopped
            connection.send(reply, Done(message.epoch + 1))

    await connection.subscribe("plus", answer)
    assert (await connection.request("plus", Done(1), 30.0, 0.02)).epoch == 2
    assert len(set(heard)) == 1, "it is the same request, whoever answers it"
    heard.clear()
    waiting = asyncio.ensure_future(connection.request("plus", Done(5), 30.0))
    for count in (1, 2):
        while len(heard) < count:
            await asyncio.sleep(0)
            assert not waiting.done()
        connection.repeat("minus")
        connection.repeat("plus")
    assert (await waiting).epoch == 6
    assert len(heard) == 3, "nothing is repeated by itself, or for another subject"
    too_large = NodeLog("job-aaaaaa", "n", (LogLine(0, "n", 0, "stdout", "x" * 100_000),))  # type: ignore[arg-type]
    heard.clear()
    with pytest.raises(TimeoutError):
        await connection.request("plus", too_large, 0.3, 0.01)
    assert len(heard) == 1, "large requests are not repeated"


@pytest.mark.slow
async def test_a_server_that_is_stopped_is_left_for_another_and_not_tried_first(
    nats: NatsProcess, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = NatsProcess(tmp_path / "other")
    addresses = PoolAddress((*nats.address.servers, *other.address.servers), "s3cret")
    connections = [await connect(addresses, "test", ping_every_s=0.1) for _ in range(8)]
    stopped = nats.address.servers[0]
    try:
        nats.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(30):
            while any(str(c._client.connected_url.netloc) == stopped for c in connections if c._client.connected_url):
                await asyncio.sleep(0.02)
            while not all(c.is_connected for c in connections):
                await asyncio.sleep(0.02)
        tried = [s.reconnects for c in connections for s in c._client._server_pool if s.uri.netloc == stopped]
        assert tried == [0] * 8
    finally:
        nats.process.send_signal(signal.SIGCONT)
        for each in connections:
            await each.close()
        other.stop()


async def test_where_there_is_another_server_those_who_are_waited_for_ask_more_often(nats: NatsProcess) -> None:
    several = PoolAddress((*nats.address.servers, *nats.address.servers), "s3cret")
    for address, every_s, expected_s in (
        (nats.address, PING_OFTEN_S, PING_OFTEN_S),
        (several, PING_OFTEN_S, PING_CLUSTER_S),
        (several, PING_EVERY_S, PING_EVERY_S),
    ):
        connection = await connect(address, "test", ping_every_s=every_s)
        assert connection.ping_every_s == connection._client.options["ping_interval"] == expected_s
        await connection.close()


@pytest.mark.slow
async def test_a_server_that_is_stopped_is_left_though_much_waits_for_it(nats: NatsProcess, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = NatsProcess(tmp_path / "other")
    connection = await connect(nats.address, "test", ping_every_s=0.1)
    connection._client._setup_server_pool([f"nats://{other.address.servers[0]}"])
    try:
        nats.process.send_signal(signal.SIGSTOP)
        line = LogLine(0, "n", 0, "stdout", "x" * 1_000_000)
        for number in range(32):
            connection.send("here", NodeLog("job", str(number), (line,)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            while not connection.is_connected or connection._client.connected_url.port != other.port:
                await asyncio.sleep(0.02)
    finally:
        nats.process.send_signal(signal.SIGCONT)
        await connection.close()
        other.stop()


@pytest.mark.slow
async def test_goes_on_after_the_server_was_killed(nats: NatsProcess, connection: Connection) -> None:
    inbox = Inbox()
    await connection.subscribe("here", inbox)
    nats.stop()
    nats.start()
    async with asyncio.timeout(30):
        while not inbox.messages:
            connection.send("here", Done(1))
            await asyncio.sleep(0.05)


async def test_clients_that_lost_the_same_server_do_not_come_back_in_step(
    nats: NatsProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: dict[DirectClient, list[float]] = {}
    connect_to = DirectClient._connect_to_server

    async def noted(self: DirectClient, server: object) -> None:
        tries.setdefault(self, []).append(time.monotonic())
        await connect_to(self, server)  # type: ignore[arg-type]

    made = [await connect(nats.address, f"client {number}") for number in range(20)]
    try:
        monkeypatch.setattr(DirectClient, "_connect_to_server", noted)
        nats.stop()
        async with asyncio.timeout(60):
            while len(tries) < 20 or min(map(len, tries.values())) < 4:
                await asyncio.sleep(0.01)
        firsts = [times[0] for times in tries.values()]
        assert max(firsts) - min(firsts) > TRY_FIRST_S / 4
        # Drawn from ever longer times: with twenty of them, some wait for longer than the first ever does.
        assert max(times[3] - times[2] for times in tries.values()) > TRY_FIRST_S
        nats.start()
        async with asyncio.timeout(60):
            while not all(connection.is_connected for connection in made):
                await asyncio.sleep(0.01)
    finally:
        for connection in made:
            await connection.close()


async def test_wrong_token_and_nobody_there_in_words(nats: NatsProcess, tmp_path: Path) -> None:
    with pytest.raises(PoolRefused, match="refused the token"):
        await connect(PoolAddress(nats.address.servers, "wrong"), "test")
    with pytest.raises(PoolUnreachable, match="no pool answers"):
        await connect(PoolAddress(("127.0.0.1:1",), "s"), "test", timeout_s=2.0)


async def test_who_speaks_is_not_looked_at_before_it_has_been_silent(connection: Connection) -> None:
    inbox = Inbox()
    await connection.subscribe("here", inbox)
    await connection.flush()
    connection.pace()
    connection.send("here", Done(1))
    await inbox.take(Done)
    assert 4.5 < connection.look_in_s(2.5) <= 5.0
    loop = asyncio.get_running_loop()
    connection._client.heard(loop.time() - 4.0)
    assert 0.5 < connection.look_in_s(2.5) <= 1.0
    connection._client.heard(loop.time() - 100.0)
    assert 0.0 < connection.look_in_s(2.5) < 1.0
    connection._client._pings_outstanding = 1
    assert connection.look_in_s(2.5) == 2.5, "it was asked"
