"""nats-py's client with shorter ways: what comes goes from the socket to its handler, what goes is written at once.

The library hands every message through a reader task, a parser of regular expressions, and a queue and a task of its
subscription; and every publication through a queue to a flusher's task. A single call passes eight of these. What is
taken a shorter way here: messages of `listen` and answers to `ask`, where the parser stands between two messages, and
publications, where nothing waits to be written before them. Everything else takes the library's own way, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg as NatsMessage
from nats.protocol.parser import AWAITING_CONTROL_LINE

from fallow.wire.direct_parser import DirectParser
from fallow.wire.keep_alive import KeepAlive
from fallow.wire.plain_socket import plain_descriptor, publish_head

Receive = Callable[[bytes, str], None]
"""(payload, reply subject or '')"""

WRITE_NOW_BYTES = 64 * 1024
WRITE_NOW_EVERY_S = 0.0001
"""What follows sooner waits for the flusher, which writes many messages by one system call."""


TRY_FIRST_S = 0.1
TRY_MOST_S = 1.0
"""A client whose server has gone waits before each try, for a time drawn from below these: the first, and twice as much
each time. Thousands that lost the same server come to the others one after another."""

AGAIN_BYTES = 64 * 1024
"""Larger requests are not repeated while they may still be answered."""


class NobodyListens(TimeoutError):
    """The server says so: there will be no answer."""


class _Asked:
    """A request that waits for its answer, and how to send it again."""

    __slots__ = ("answer", "inbox", "payload", "subject", "timer")

    def __init__(self, subject: str, payload: bytes, inbox: str, answer: asyncio.Future[bytes]) -> None:
        self.subject = subject
        self.payload = payload
        self.inbox = inbox
        self.answer = answer
        self.timer: asyncio.TimerHandle | None = None


class DirectClient(KeepAlive):
    """A nats-py client; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self._ps: DirectParser = DirectParser(self)
        self._direct: dict[int, Receive] = {}
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._inbox_sid = -1
        self._asked: dict[bytes, _Asked] = {}
        self._next_ask = 0
        self._listening: asyncio.Task[Any] | None = None
        self._waiting: deque[Coroutine[Any, Any, None]] = deque()
        self._resuming: asyncio.Task[None] | None = None
        self._parsing: asyncio.Task[None] | None = None
        self._raw: Any = None
        """The transport under the library's, where it is a plain socket."""
        self._descriptor = -1
        """The socket once more: ours to write to, whatever becomes of the transport meanwhile."""
        self._rest = b""
        """Of a message of which the socket took a part: the transport is to take it before anything else."""
        self._writing = threading.Lock()
        """One message is written whole, or put whole into the transport's buffer, before the next."""
        self._finish_soon: Callable[[], object] = lambda: None
        """From any thread: has the loop hand the rest to the transport."""
        self._write_now_after = 0.0
        self._together: list[tuple[str, bytes]] | None = None
        """Publications that are to be written with the next ones."""
        self._tries = 0
        """To connect, since there was a connection."""

    # ------------------------------------------------------------ connecting

    async def _select_next_server(self) -> None:
        """As the library does it (the next one of the pool, until one takes a connection), but not in step with all
        others, and ever more seldom."""
        while self._server_pool:
            if self._tries or self._status == Client.RECONNECTING:
                await asyncio.sleep(random.uniform(0.0, min(TRY_MOST_S, TRY_FIRST_S * 2**self._tries)))
            self._tries = min(self._tries + 1, 16)
            server = self._server_pool.pop(0)
            self._server_pool.append(server)
            try:
                await self._connect_to_server(server)
            except Exception as error:
                server.last_attempt = time.monotonic()
                server.reconnects += 1
                self._err = error
                await self._error_cb(error)
                continue
            self._current_server = server
            return
        self._current_server = None
        raise nats.errors.NoServersError

    # ------------------------------------------------------------ receiving

    async def listen(self, subject: str, receive: Receive, queue: str = "") -> Any:
        """Subscribe; `receive` is called on the loop, in order, and must not raise. Returns the subscription."""

        async def fallback(message: NatsMessage) -> None:
            receive(message.data, message.reply)

        subscription = await self.subscribe(subject, queue=queue, cb=fallback)
        self._direct[subscription._id] = receive
        return subscription

    def unlisten(self, subscription: Any) -> None:
        self._direct.pop(subscription._id, None)

    async def _read_loop(self) -> None:
        """Begins with every connection."""
        self._tries = 0
        if self._unanswered is not None:
            self._unanswered.cancel()
            self._unanswered = None
        if self._parsing is not None:
            self._parsing.cancel()
        reader = getattr(self._transport, "_io_reader", None)
        writer = getattr(self._transport, "_io_writer", None)
        if reader is not None and writer is not None:
            self._shorten(reader)
            self._share(writer)
        await super()._read_loop()

    async def _close(self, *arguments: Any, **options: Any) -> None:
        self._let_go()
        await super()._close(*arguments, **options)
        self._let_go()

    async def _attempt_reconnect(self) -> None:
        """What still waits to be written to the server that is left is lost: the library would wait until a server
        that is stopped has read it."""
        self._let_go()
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        await super()._attempt_reconnect()

    def _share(self, writer: asyncio.StreamWriter) -> None:
        """From here on other threads may write too, where nothing waits to be written."""
        self._let_go()
        transport: Any = self._transport
        writing = self._writing
        kind = type(transport)

        def write_rest() -> None:
            if self._rest and self._transport is transport:
                rest, self._rest = self._rest, b""
                kind.write(transport, rest)

        def write_rest_in_turn() -> None:
            with writing:
                write_rest()

        def write_in_turn(data: bytes) -> None:
            with writing:
                write_rest()
                kind.write(transport, data)

        def writelines_in_turn(data: Any) -> None:
            with writing:
                write_rest()
                kind.writelines(transport, data)

        loop = asyncio.get_running_loop()
        self._finish_soon = lambda: loop.call_soon_threadsafe(write_rest_in_turn)
        transport.write, transport.writelines = write_in_turn, writelines_in_turn
        with writing:
            self._raw, self._descriptor = writer.transport, plain_descriptor(writer.transport)

    def _let_go(self) -> None:
        with self._writing:
            descriptor, self._descriptor = self._descriptor, -1
            self._rest = b""
            if descriptor >= 0:
                os.close(descriptor)

    def _shorten(self, reader: asyncio.StreamReader) -> None:
        """Take what the socket gives before the library's reader does, unless that has something left to do."""
        take_long_way = reader.feed_data
        parser, clock = self._ps, asyncio.get_running_loop().time

        def feed_data(data: bytes) -> None:
            self.heard(clock())
            if parser.is_busy or reader._buffer:  # type: ignore[attr-defined]
                take_long_way(data)
                return
            if not parser.buf and parser.state == AWAITING_CONTROL_LINE:
                done = self._take_messages(data)
                if done == len(data):
                    return
                if done:
                    data = data[done:]
            self._parse(data)

        reader.feed_data = feed_data  # type: ignore[method-assign, assignment]

    def _take_messages(self, data: bytes) -> int:
        """Hand on the whole messages at the beginning of the data that have a direct handler; returns their length."""
        at = 0
        while data.startswith(b"MSG ", at):
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            words = data[at + 4 : line_end].split()
            begin = line_end + 2
            try:
                sid, end = int(words[1]), begin + int(words[-1])
            except (IndexError, ValueError):
                break  # the library has words for it
            if end + 2 > len(data):
                break
            if sid == self._inbox_sid:
                self._answered(words[0], data[begin:end], b"")
            else:
                receive = self._direct.get(sid)
                if receive is None:
                    break
                receive(data[begin:end], words[2].decode() if len(words) == 4 else "")
            at = end + 2
        return at

    def _parse(self, data: bytes) -> None:
        """Have the library's parser take it, now; a task goes on where it wants to wait."""
        work = self._ps.parse(data)
        try:
            waits_for = work.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._parsing = asyncio.get_running_loop().create_task(self._process_op_err(error))
            return
        self._parsing = asyncio.get_running_loop().create_task(self._parse_on(_go_on(work, waits_for)))

    async def _parse_on(self, rest: Any) -> None:
        try:
            await rest
        except Exception as error:
            await self._process_op_err(error)

    def _answered(self, subject: bytes, data: bytes, headers: bytes) -> None:
        asked = self._asked.get(subject)
        if asked is not None and not asked.answer.done():
            if headers and not data:
                asked.answer.set_exception(NobodyListens("nobody listens"))  # the server says so by a status of 503
            else:
                asked.answer.set_result(data)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid == self._inbox_sid:
            self._answered(bytes(subject), data, headers)
            return
        receive = self._direct.get(sid)
        if receive is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        receive(data, reply.decode() if reply else "")

    # ------------------------------------------------------------ sending

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish now, in order. May raise what `publish` raises."""
        if self._together is not None:
            if not reply:
                self._together.append((subject, payload))
                return
            self._send_gathered()
        if not reply and self._write_now(((subject, payload),)):
            return
        publication = self.publish(subject, payload, reply)
        if self._resuming is not None:
            self._waiting.append(publication)
            return
        try:
            waits_for = publication.send(None)
        except StopIteration:
            return
        # The library wants to wait (its buffer is full): a task goes on with this one, and later ones queue behind it.
        self._waiting.append(_go_on(publication, waits_for))
        self._resuming = asyncio.get_running_loop().create_task(self._resume())

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is sent within is written at its end, by one system call where that can be: the server, too, then reads
        and passes on all of it at once."""
        if self._together is not None:
            yield
            return
        self._together = []
        try:
            yield
        finally:
            self._send_gathered()
            self._together = None

    def _send_gathered(self) -> None:
        gathered, self._together = self._together or [], None
        if len(gathered) < 2 or not self._write_now(gathered):
            for subject, payload in gathered:
                with contextlib.suppress(nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
                    self.send(subject, payload)
        self._together = []

    def send_now(self, *publications: tuple[str, bytes]) -> bool:
        """As `send`, for each (subject, payload), from any thread, where nothing waits to be written before them.
        False: nothing was written."""
        return self._write_now(publications)

    def _write_now(self, publications: Sequence[tuple[str, bytes]]) -> bool:
        """Write to the socket itself, if nothing waits before it and it is alone: one of many had better wait for
        the others. False: nothing was written."""
        if (
            self._descriptor < 0
            or self._pending_data_size
            or self._status != Client.CONNECTED
            or self._resuming is not None
            or sum(len(payload) for _, payload in publications) > WRITE_NOW_BYTES
            or self._raw.is_closing()
            or self._rest
            or self._raw.get_write_buffer_size()
        ):
            return False
        now = time.perf_counter()
        if now < self._write_now_after:
            return False
        data = b""
        for subject, payload in publications:
            head = publish_head(subject)
            if head is None:
                return False
            data += b"%b%d\r\n%b\r\n" % (head, len(payload), payload)
        self._write_now_after = now + WRITE_NOW_EVERY_S
        with self._writing:
            if self._descriptor < 0 or self._rest or self._raw.get_write_buffer_size():
                return False  # another thread was quicker
            try:
                written = os.write(self._descriptor, data)
            except OSError:  # full, or broken: the library finds out
                return False
            if written < len(data):
                self._rest = data[written:]
                self._finish_soon()
        return True

    async def _resume(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._waiting.popleft()
                except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
                    continue  # as if lost on the way
        finally:
            self._resuming = None

    # ------------------------------------------------------------ asking

    async def ask(self, subject: str, payload: bytes, timeout_s: float, again_s: float = 0.0) -> bytes:
        """Send and wait for one reply. Raises TimeoutError, at once where nobody listens. `again_s`: while there is
        none, send it again that often, since the first may have gone to somebody who is stopped, or be lost."""
        if self._listening is None:
            self._listening = asyncio.ensure_future(self.subscribe(self._inbox + ".*"))
        if self._inbox_sid < 0:
            subscription = await asyncio.shield(self._listening)
            self._inbox_sid = subscription._id
        self._next_ask += 1
        inbox = f"{self._inbox}.{self._next_ask}"
        loop = asyncio.get_running_loop()
        asked = _Asked(subject, payload, inbox, loop.create_future())
        self._asked[inbox.encode()] = asked
        try:
            self.send(subject, payload, inbox)
            if again_s and len(payload) <= AGAIN_BYTES:
                asked.timer = loop.call_later(again_s, self._ask_again, asked, again_s)
            async with asyncio.timeout(timeout_s):
                return await asked.answer
        finally:
            del self._asked[inbox.encode()]
            if asked.timer is not None:
                asked.timer.cancel()

    def _ask_again(self, asked: _Asked, again_s: float) -> None:
        self._send_again(asked)
        asked.timer = asyncio.get_running_loop().call_later(again_s, self._ask_again, asked, again_s)

    def _send_again(self, asked: _Asked) -> None:
        with contextlib.suppress(nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
            self.send(asked.subject, asked.payload, asked.inbox)

    def repeat(self, subject: str = "") -> None:
        """Send again, now, what still waits for an answer on this subject ('': on any): who was to answer is gone, or
        the connection is a new one."""
        for asked in list(self._asked.values()):
            if not asked.answer.done() and subject in ("", asked.subject) and len(asked.payload) <= AGAIN_BYTES:
                self._send_again(asked)


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that has been driven by hand until it yielded `waits_for`."""
    while True:
        try:
            value = yield waits_for
        except BaseException as error:
            try:
                waits_for = coroutine.throw(error)
            except StopIteration:
                return
        else:
            try:
                waits_for = coroutine.send(value)
            except StopIteration:
                return
