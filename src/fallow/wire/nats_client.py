"""A client of the NATS protocol, for messages as a pool sends them: publish, subscribe, request, reconnect for ever.

The protocol is a line of text before each payload. A message goes from the socket to its handler in one call of the
event loop, and what handlers send in that call leaves in one write: no task, queue or wake-up in between. That is
what this module is for: every single call passes four such steps, and every process of a pool imports this first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

PING_EVERY_S = 1.0
PINGS_UNANSWERED_LIMIT = 2
RECONNECT_FIRST_S = 0.05
RECONNECT_MAX_S = 2.0
CONNECT_LIMIT_S = 1.5
"""For one attempt to reconnect."""
LINE_LIMIT_BYTES = 64 * 1024
"""No line of the protocol is longer (INFO is the longest); beyond it the peer is no NATS server."""
SERVERS_LIMIT = 64

Callback = Callable[[bytes, str], None]
"""(payload, reply subject or '')"""


class NatsError(Exception):
    """Something of this protocol went wrong."""


class NatsRefused(NatsError):
    """The server ended the connection with these words (wrong token, and the like)."""


class NoResponders(NatsError):
    """Nobody listens on the subject of a request."""


class NotConnected(NatsError):
    """There is no connection, and no way to keep what was to be sent."""


class _Wire(asyncio.Protocol):
    """One TCP connection: bytes to lines and payloads. `client` hears what they mean."""

    def __init__(self, client: NatsClient) -> None:
        loop = asyncio.get_running_loop()
        self.client = client
        self.transport: asyncio.Transport | None = None
        self.info: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.welcome: asyncio.Future[None] = loop.create_future()
        """Done with the first PONG: the server has taken our CONNECT and subscriptions."""
        self.pongs: deque[asyncio.Future[None]] = deque()
        self.pings_unanswered = 0
        self.last_words = ""
        self.writable: asyncio.Event = asyncio.Event()
        self.writable.set()
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 1
        """Bytes before it is worth looking again: a large payload is joined once, not at every packet."""

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        reason = NatsRefused(self.last_words) if self.last_words else NotConnected(str(error or "connection closed"))
        waiting: list[asyncio.Future[Any]] = [self.info, self.welcome, *self.pongs]
        for future in waiting:
            if not future.done():
                future.set_exception(reason)
                future.exception()  # looked at: nobody need wait for it
        self.pongs.clear()
        self.writable.set()
        self.client._wire_lost(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        try:
            rest, self._need = self._parse(data)
        except (ValueError, IndexError):
            self._give_up("a malformed message: is this a NATS server?")
            return
        if rest < len(data):
            left = data[rest:] if rest else data
            self._parts.append(left)
            self._have = len(left)

    # ------------------------------------------------------------ the protocol

    def _parse(self, data: bytes) -> tuple[int, int]:
        """Take whole messages. (where the rest begins, how many bytes of rest are needed to go on)"""
        at, length = 0, len(data)
        while at < length:
            end = data.find(b"\r\n", at)
            if end < 0:
                if length - at > LINE_LIMIT_BYTES:
                    self._give_up("a line without end: is this a NATS server?")
                    return length, 1
                return at, length - at + 1
            plain = data.startswith(b"MSG ", at)
            if plain or data.startswith(b"HMSG ", at):
                words = data[at:end].split()
                size = int(words[-1])
                body = end + 2
                after = body + size + 2
                if after > length:
                    return at, after - at
                at = after
                if plain:
                    reply = words[3].decode() if len(words) == 5 else ""
                    self.client._deliver(int(words[2]), words[1], data[body : body + size], reply, 0)
                else:
                    head = int(words[-2])
                    reply = words[3].decode() if len(words) == 6 else ""
                    status = _status(data[body : body + head])
                    self.client._deliver(int(words[2]), words[1], data[body + head : body + size], reply, status)
                continue
            self._line(data[at:end])
            at = end + 2
        return length, 1

    def _line(self, line: bytes) -> None:
        if line == b"PING":
            self.write(b"PONG\r\n")
        elif line == b"PONG":
            self.pings_unanswered = 0
            if not self.welcome.done():
                self.welcome.set_result(None)
            elif self.pongs:
                future = self.pongs.popleft()
                if not future.done():
                    future.set_result(None)
        elif line.startswith(b"INFO "):
            with contextlib.suppress(ValueError):
                info = json.loads(line[5:])
                self.client._learn_servers(info.get("connect_urls") or ())
                if not self.info.done():
                    self.info.set_result(info)
        elif line.startswith(b"-ERR"):
            words = line[4:].strip().strip(b"'").decode(errors="replace")
            if "permissions violation" not in words.lower():
                self.last_words = words
        elif line and line != b"+OK":
            self._give_up("unknown words: is this a NATS server?")

    def _give_up(self, words: str) -> None:
        self.last_words = words
        self.abort()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def ping(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pongs.append(future)
        self.write(b"PING\r\n")
        return future

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _status(header: bytes) -> int:
    """The status of 'NATS/1.0 503...', 0 where there is none."""
    first = header.split(b"\r\n", 1)[0].split()
    return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0


class NatsClient:
    """A connection that comes back by itself. Everything is called on the loop that `connect` ran on."""

    def __init__(self, servers: Sequence[str], token: str, name: str, *, pending_limit_bytes: int) -> None:
        """servers: 'host:port' each. pending_limit_bytes: what may wait to be sent; beyond it messages are dropped."""
        self._servers = list(servers)
        self._token = token
        self._name = name
        self._pending_limit = pending_limit_bytes
        self.on_reconnect: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], None] = lambda: None
        self.max_payload = 1 << 20
        self.server_host = ""
        """Of the server that we are connected to; '' while there is none."""
        self._loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self._subscriptions: dict[int, tuple[bytes, bytes, Callback]] = {}
        self._next_sid = 1
        self._inbox = b""
        self._requests: dict[bytes, asyncio.Future[bytes]] = {}
        self._next_request = 0
        self._closed = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._pinger: asyncio.TimerHandle | None = None

    @property
    def is_connected(self) -> bool:
        return self._wire is not None

    # ------------------------------------------------------------ coming and going

    async def connect(self, timeout_s: float) -> None:
        """Try every server until one takes us. Raises NatsRefused at once for a refusal, else NotConnected, OSError
        or TimeoutError after `timeout_s`."""
        deadline = self._loop.time() + timeout_s
        while True:
            error: Exception = NotConnected("no server")
            for server in list(self._servers):
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._attempt(server)
                    return
                except NatsRefused:
                    raise
                except (OSError, NatsError) as found:
                    error = found
            if self._loop.time() + 0.05 >= deadline:
                raise error
            await asyncio.sleep(0.05)

    async def _attempt(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        transport, wire = await self._loop.create_connection(lambda: _Wire(self), host, int(port))
        try:
            info = await wire.info
            if info.get("tls_required"):
                import ssl

                secured = await self._loop.start_tls(
                    transport, wire, ssl.create_default_context(), server_hostname=host
                )
                assert secured is not None
                wire.transport = secured
            self.max_payload = int(info.get("max_payload", self.max_payload))
            options = {
                "verbose": False, "pedantic": False, "lang": "python", "version": "1", "protocol": 1, "headers": True,
                "no_responders": True, "name": self._name, "auth_token": self._token,
            }  # fmt: skip
            hello = [b"CONNECT " + json.dumps(options).encode() + b"\r\n"]
            hello += [_sub(subject, queue, sid) for sid, (subject, queue, _) in self._subscriptions.items()]
            hello.append(b"PING\r\n")
            wire.write(b"".join(hello))
            await wire.welcome
        except BaseException:
            wire.abort()
            raise
        self._wire = wire
        self.server_host = host
        self._flush_out()
        self._pinger = self._loop.call_later(PING_EVERY_S, self._ping)

    def _ping(self) -> None:
        wire = self._wire
        if wire is None:
            return
        if wire.pings_unanswered >= PINGS_UNANSWERED_LIMIT:
            wire.abort()
            return
        wire.pings_unanswered += 1
        wire.ping()
        self._pinger = self._loop.call_later(PING_EVERY_S, self._ping)

    def _wire_lost(self, wire: _Wire) -> None:
        if wire is not self._wire:
            return
        self._wire = None
        self.server_host = ""
        if self._pinger is not None:
            self._pinger.cancel()
        if self._closed:
            return
        self.on_disconnect()
        self._reconnecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        delay = RECONNECT_FIRST_S
        while not self._closed:
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 1.7, RECONNECT_MAX_S)
            for server in random.sample(self._servers, len(self._servers)):
                try:
                    async with asyncio.timeout(CONNECT_LIMIT_S):
                        await self._attempt(server)
                except (OSError, NatsError):
                    continue
                self.on_reconnect()
                return

    def _learn_servers(self, urls: Sequence[str]) -> None:
        """A cluster names its other servers."""
        for url in urls:
            if url not in self._servers and len(self._servers) < SERVERS_LIMIT:
                self._servers.append(url)

    async def close(self) -> None:
        """Send what waits, and end."""
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._pinger is not None:
            self._pinger.cancel()
        wire = self._wire
        if wire is not None and wire.transport is not None:
            self._flush_out()
            with contextlib.suppress(NatsError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await wire.ping()
            wire.transport.close()
        for future in self._requests.values():
            if not future.done():
                future.set_exception(NotConnected("the connection was closed"))
        self._requests.clear()

    # ------------------------------------------------------------ out

    def publish(self, subject: str, payload: bytes, reply: str = "") -> bool:
        """Send soon, in order. False: there was no room for it, and it is dropped. Raises ValueError for a payload
        over the server's limit, which would cost the connection."""
        size = len(payload)
        if size > self.max_payload:
            raise ValueError(f"a message of {size} bytes is over the server's limit of {self.max_payload}")
        if self._out_bytes + size > self._pending_limit or self._backlog() > self._pending_limit:
            return False
        head = f"PUB {subject} {reply} {size}\r\n" if reply else f"PUB {subject} {size}\r\n"
        self._push(head.encode(), payload, b"\r\n")
        return True

    def _push(self, *pieces: bytes) -> None:
        self._out += pieces
        self._out_bytes += sum(map(len, pieces))
        if not self._flushing and self._wire is not None:
            self._flushing = True
            self._loop.call_soon(self._flush_out)

    def _flush_out(self) -> None:
        self._flushing = False
        wire = self._wire
        if wire is None or wire.transport is None or not self._out:
            return
        pieces, self._out, self._out_bytes = self._out, [], 0
        wire.write(b"".join(pieces))

    def _backlog(self) -> int:
        wire = self._wire
        if wire is None or wire.transport is None or wire.writable.is_set():
            return 0
        return int(wire.transport.get_write_buffer_size())

    async def drain(self) -> None:
        """Wait while the socket takes no more."""
        if self._wire is not None:
            await self._wire.writable.wait()

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has seen everything sent so far. Raises NatsError or TimeoutError."""
        if self._wire is None:
            raise NotConnected("not connected")
        self._flush_out()
        async with asyncio.timeout(timeout_s):
            await self._wire.ping()

    # ------------------------------------------------------------ in

    def subscribe(self, subject: str, callback: Callback, queue: str = "") -> int:
        """Call back with every message, in the order of arrival; returns the subscription's number."""
        sid = self._next_sid
        self._next_sid += 1
        self._subscriptions[sid] = (subject.encode(), queue.encode(), callback)
        if self._wire is not None:
            self._push(_sub(subject.encode(), queue.encode(), sid))
        return sid

    def unsubscribe(self, sid: int) -> None:
        if self._subscriptions.pop(sid, None) is not None and self._wire is not None:
            self._push(b"UNSUB %d\r\n" % sid)

    def _deliver(self, sid: int, subject: bytes, payload: bytes, reply: str, status: int) -> None:
        if sid == 0:
            return
        entry = self._subscriptions.get(sid)
        if entry is None:
            return
        if entry[0] is self._inbox:
            future = self._requests.pop(subject, None)
            if future is not None and not future.done():
                if status == 503:
                    future.set_exception(NoResponders("nobody listens there"))
                else:
                    future.set_result(payload)
            return
        if status:
            return
        try:
            entry[2](payload, reply)
        except Exception as error:
            context = {"message": f"handler of {entry[0].decode()} failed", "exception": error}
            self._loop.call_exception_handler(context)

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask and wait for one answer. Raises NoResponders, NotConnected or TimeoutError."""
        if not self._inbox:
            inbox = f"_INBOX.{os.urandom(12).hex()}.*"
            self.subscribe(inbox, lambda payload, reply: None)
            self._inbox = self._subscriptions[self._next_sid - 1][0]
        self._next_request += 1
        address = self._inbox[:-1] + str(self._next_request).encode()
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._requests[address] = future
        try:
            if not self.publish(subject, payload, address.decode()):
                raise NotConnected("too much waits to be sent")
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._requests.pop(address, None)


def _sub(subject: bytes, queue: bytes, sid: int) -> bytes:
    return b"SUB %b %b %d\r\n" % (subject, queue, sid) if queue else b"SUB %b %d\r\n" % (subject, sid)
