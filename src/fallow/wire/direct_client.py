"""nats-py's client with shorter ways: messages go from its parser straight to their handler, publishing is synchronous.

The library hands every message to a queue and a task of its subscription, and every publication to a task's next
turn; a single call passes ten of these. What is overridden here is one method, `_process_msg` (a test shows that it is
called); should it not be, messages take the library's own way (`subscribe` gives it the same handler), only slower.
"""

from __future__ import annotations

import asyncio
import secrets
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg as NatsMessage

Receive = Callable[[bytes, str], None]
"""(payload, reply subject or '')"""


class DirectClient(Client):
    """A nats-py client; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Receive] = {}
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._inbox_sid = -1
        self._asked: dict[bytes, asyncio.Future[bytes]] = {}
        self._next_ask = 0
        self._listening: asyncio.Task[Any] | None = None
        self._waiting: deque[Coroutine[Any, Any, None]] = deque()
        self._resuming: asyncio.Task[None] | None = None

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

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid == self._inbox_sid:
            answer = self._asked.get(subject)
            if answer is not None and not answer.done():
                if headers and not data:
                    answer.set_exception(TimeoutError("nobody listens"))  # the server says so by a status of 503
                else:
                    answer.set_result(data)
            return
        receive = self._direct.get(sid)
        if receive is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        receive(data, reply.decode() if reply else "")

    # ------------------------------------------------------------ sending

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish now, in order. May raise what `publish` raises."""
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

    async def ask(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Send and wait for one reply. Raises TimeoutError, at once where nobody listens."""
        if self._listening is None:
            self._listening = asyncio.ensure_future(self.subscribe(self._inbox + ".*"))
        if self._inbox_sid < 0:
            subscription = await asyncio.shield(self._listening)
            self._inbox_sid = subscription._id
        self._next_ask += 1
        inbox = f"{self._inbox}.{self._next_ask}"
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[inbox.encode()] = answer
        try:
            self.send(subject, payload, inbox)
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            del self._asked[inbox.encode()]


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
