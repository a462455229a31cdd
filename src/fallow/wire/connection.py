"""The NATS connection: reconnects for ever with jitter, and messages both ways.

Reading happens on the event loop; handlers are called in the order of arrival, without a task per message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl as _ssl  # noqa: F401  (nats imports it anyway; here so that the cost shows in one place)
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import msgspec

if "aiohttp" not in sys.modules:
    # nats-py would load it for websockets, which a pool does not use: half the time of this import, in every process.
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        import nats
    finally:
        del sys.modules["aiohttp"]
import nats
import nats.errors

from fallow.model.errors import PoolRefused, PoolUnreachable
from fallow.wire.address import PoolAddress
from fallow.wire.direct_client import DirectClient
from fallow.wire.direct_client import NobodyListens as NobodyListens
from fallow.wire.messages import Msg, decode, encode

log = logging.getLogger("fallow.wire")

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
"""The server's max_payload in a pool of ours; no message may exceed it."""

PENDING_BYTES_LIMIT = 256 * 1024 * 1024

PING_EVERY_S = 1.0
PING_OFTEN_S = 0.5
"""The same for those whom others wait for: coordinators, customers, and agents at work."""
PING_CLUSTER_S = 0.25
"""The same where there are other servers to go to: coordinators and customers."""
PINGS_UNANSWERED = 2
"""A server that answers nothing for so long is stopped or cut off, though its connection stands: another is taken."""

ATTEMPT_S = 2.0
"""One server of several may take so long to greet before the next one is tried."""

Handler = Callable[[Any, str], None]
"""(decoded message, reply subject or '')"""


class Connection:
    """A connected client. `on_reconnect` runs on the loop after every reconnection."""

    def __init__(self, client: DirectClient, ping_every_s: float = PING_EVERY_S) -> None:
        self._client = client
        self.ping_every_s = ping_every_s
        """How often the server is to be asked whether it is there."""
        self._since = time.monotonic()
        self.on_reconnect: list[Callable[[], None]] = []
        self.on_disconnect: list[Callable[[], None]] = []

    @property
    def is_connected(self) -> bool:
        return bool(self._client.is_connected)

    def has_listened(self, seconds: float) -> bool:
        """Whether it was connected all that time: else others' silence means nothing."""
        return self.is_connected and time.monotonic() - self._since >= seconds

    @property
    def reads(self) -> int:
        """How often something came, so far."""
        return self._client.reads

    @property
    def is_clustered(self) -> bool:
        """The server is one of several that pass messages on to each other."""
        return bool(self._client._server_info.get("cluster"))

    @property
    def server_host(self) -> str:
        """The host that the pool is reached by at present; '' while not connected."""
        url = self._client.connected_url
        return (url.hostname or "") if url is not None else ""

    async def publish(self, subject: str, message: Msg, reply: str = "") -> None:
        """As `send`, for coroutines."""
        self.send(subject, message, reply)

    def send(self, subject: str, message: Msg, reply: str = "") -> None:
        """Publish, in order. What cannot be sent now waits in a bounded buffer; when that is full the message is
        dropped, as if lost on the way (senders repeat until they hear)."""
        try:
            self._client.send(subject, encode(message), reply)
        except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError):
            pass

    def together(self) -> AbstractContextManager[None]:
        """What is sent within goes at its end, all at once where that can be."""
        return self._client.together()

    def send_now(self, *publications: tuple[str, Msg]) -> bool:
        """As `send`, for each (subject, message), from any thread; False where they cannot be written at once."""
        return self._client.send_now(*[(subject, encode(message)) for subject, message in publications])

    async def request(self, subject: str, message: Msg, timeout_s: float, again_s: float = 0.0) -> Any:
        """Ask and wait for one reply. Raises TimeoutError; NobodyListens is one. `again_s`: sent again that often
        while there is no answer (0: once)."""
        data = await self.request_bytes(subject, encode(message), timeout_s, again_s)
        return decode(data)

    async def request_bytes(self, subject: str, data: bytes, timeout_s: float, again_s: float = 0.0) -> bytes:
        try:
            return await self._client.ask(subject, data, timeout_s, again_s)
        except NobodyListens:
            raise
        except TimeoutError as error:
            raise TimeoutError(f"no answer on {subject} within {timeout_s:g} s") from error
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            raise TimeoutError(f"not connected while asking on {subject}") from error

    def repeat(self, subject: str) -> None:
        """Send again what still waits for an answer on this subject."""
        self._client.repeat(subject)

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Any:
        """Call `handler` with every message. One that cannot be decoded is dropped: a stranger's or a newer one's."""

        def receive(data: bytes, reply: str) -> None:
            try:
                message = decode(data)
            except msgspec.DecodeError:
                return
            try:
                handler(message, reply)
            except Exception:
                log.exception("a %s on %s could not be handled", type(message).__name__, subject)

        return await self._client.listen(subject, receive, queue)

    async def unsubscribe(self, subscription: Any) -> None:
        self._client.unlisten(subscription)
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()

    async def flush(self, timeout_s: float = 2.0) -> None:
        with contextlib.suppress(Exception):
            await self._client.flush(timeout=max(1, round(timeout_s)))

    def pace(self) -> None:
        """From now on `keep_alive` is called every `ping_every_s` or so: no timer of the connection's own is needed."""
        self._client.pace()

    def keep_alive(self, press: bool = False) -> None:
        """Ask the server whether it is there, unless something came from it since the last call. `press`: while it
        does not answer it is asked again every `ping_every_s`, however late the next call is; and where there are
        other servers to go to it is asked in any case."""
        self._client.keep_alive(self.ping_every_s if press else 0.0, press and self.is_clustered)

    def look_in_s(self, every_s: float) -> float:
        """Seconds until `keep_alive` is worth a call again, for those who do not press: a server is asked once it has
        been silent for 2 * `every_s`, and then that often."""
        return self._client.look_in_s(every_s)

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.close(), 2.0)


async def connect(
    address: PoolAddress, name: str, timeout_s: float = 5.0, ping_every_s: float = PING_EVERY_S
) -> Connection:
    """Connect to the pool's NATS. Raises PoolUnreachable or PoolRefused in words when the first attempt fails
    for `timeout_s`; afterwards reconnects for ever. A server is left after three pings without an answer."""
    holder: list[Connection] = []

    async def reconnected() -> None:
        if holder:
            holder[0]._since = time.monotonic()
            holder[0]._client.repeat()
        for callback in holder[0].on_reconnect if holder else ():
            callback()

    async def disconnected() -> None:
        for callback in holder[0].on_disconnect if holder else ():
            callback()

    if len(address.servers) > 1 and ping_every_s <= PING_OFTEN_S:
        ping_every_s = min(ping_every_s, PING_CLUSTER_S)
    last: list[BaseException] = []

    async def failed(error: Exception) -> None:
        last[:] = [error]
        if not holder and "authorization" in str(error).lower():
            # Ends the first attempt: a token does not get better by being shown again.
            raise error

    async def attempt() -> DirectClient:
        client = DirectClient()
        await client.connect(
            servers=address.urls,
            token=address.secret,
            name=name,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            connect_timeout=max(1, int(min(timeout_s, ATTEMPT_S))),
            ping_interval=ping_every_s,  # type: ignore[arg-type]
            max_outstanding_pings=PINGS_UNANSWERED,
            pending_size=PENDING_BYTES_LIMIT,
            flusher_queue_size=65536,
            reconnected_cb=reconnected,
            disconnected_cb=disconnected,
            error_cb=failed,
        )
        # The order of the servers was drawn; the one that it has now stands last in it. Should that one stop, it is not
        # to be tried first: it takes connections, and greets nobody.
        client.options["dont_randomize"] = True
        return client

    try:
        client = await asyncio.wait_for(attempt(), timeout_s)
    except (TimeoutError, OSError, nats.errors.Error) as error:
        cause = last[0] if last else error
        if "authorization" in str(cause).lower():
            raise PoolRefused(
                f"the pool at {address.public} refused the token. "
                "Copy the whole line that `fallow up --listen` printed there.",
                "unauthorised",
            ) from None
        raise PoolUnreachable(
            f"no pool answers at {address.public} ({cause or type(cause).__name__}). "
            "Is `fallow up` running there, and is the port open?"
        ) from None
    connection = Connection(client, ping_every_s)
    holder.append(connection)
    return connection
