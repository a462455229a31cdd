"""nats-py's client, whose server is asked whether it is there only where it is silent."""

from __future__ import annotations

import asyncio
from typing import Any

import nats.errors
from nats.aio.client import PING_PROTO, Client


class KeepAlive(Client):
    """The library asks by a clock of its own, however much the server says meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._is_paced = False
        self.reads = 0
        """How often the socket gave something."""
        self._read_s = 0.0
        """When it did so last, on the loop's clock."""
        self._reads_before = 0
        """As of the last `keep_alive`."""
        self._unanswered: asyncio.TimerHandle | None = None
        """While a server that was asked has not said anything."""
        self._asking: asyncio.Task[None] | None = None

    def heard(self, now: float) -> None:
        """The server has said something; `now`: by the loop's clock."""
        self.reads += 1
        self._read_s = now
        if self._unanswered is not None:
            self._unanswered.cancel()
            self._unanswered = None
            self._pings_outstanding = 0

    def pace(self) -> None:
        """No timer of the library's: whoever calls this calls `keep_alive` from one of their own."""
        self._is_paced = True
        if self._ping_interval_task is not None:
            self._ping_interval_task.cancel()

    async def _ping_interval(self) -> None:
        """Begins with every connection."""
        while not self._is_paced:
            await asyncio.sleep(self.look_in_s(self.options["ping_interval"]))
            self.keep_alive()

    def look_in_s(self, every_s: float) -> float:
        """Seconds until the next `keep_alive`, so that a server is asked when it has been silent for 2 * `every_s`, and
        then every `every_s`: one that speaks costs no look in between."""
        if self._pings_outstanding:
            return every_s
        silent_s = asyncio.get_running_loop().time() - self._read_s
        return min(2 * every_s, max(every_s / 4, 2 * every_s - silent_s))

    def keep_alive(self, again_s: float = 0.0, always: bool = False) -> None:
        """As the library does it, but a server that speaks is not asked whether it is there, but for `always`.
        `again_s`: one that says nothing is asked again so soon, and so on."""
        heard, self._reads_before = self.reads != self._reads_before, self.reads
        if not self.is_connected or self._unanswered is not None:
            return
        if heard:
            self._pings_outstanding = 0
            if not always:
                return
        self._ask_server(again_s)

    def _ask_server(self, again_s: float) -> None:
        self._unanswered = None
        if not self.is_connected:
            return
        loop = asyncio.get_running_loop()
        self._pings_outstanding += 1
        if self._pings_outstanding > self.options["max_outstanding_pings"]:
            self._asking = loop.create_task(self._process_op_err(nats.errors.StaleConnectionError()))
            return
        self._asking = loop.create_task(self._send_ping())
        if again_s:
            self._unanswered = loop.call_later(again_s, self._ask_server, again_s)

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        """The library writes a PING past what waits to be written, so that `flush` could end before a subscription
        made earlier was known to the server. In turn, its answer says that all before it has arrived."""
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        if self.is_connected:  # what waits is sent after a reconnection, where nobody counts on its PONG
            self._pending.append(PING_PROTO)
            self._pending_data_size += len(PING_PROTO)
            await self._flush_pending()
