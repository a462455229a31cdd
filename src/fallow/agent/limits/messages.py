"""Holds the lent rates for what travels in messages: small pages of inputs and results, states, and what tasks print.

What is sent waits its turn behind what was sent before. What comes cannot be stopped on its way, since answers to beats
come by the same connection: so the next lease is asked for later. Beats, acknowledgements and all that says what this
node holds are not held up: without them the node is taken for lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import msgspec

from fallow.agent.limits.bandwidth import Throttle
from fallow.model.job import Blob
from fallow.wire import subjects
from fallow.wire.messages import CallResults, HandIn, Lease, Msg, NodeLog, Pull

HEAD_BYTES = 256
"""About what a message has besides its pages."""


def size_of(message: Msg) -> int:
    """Bytes that a message takes on its way, more or less; 0: it is not held up."""
    match message:
        case HandIn():
            return HEAD_BYTES + sum(_inline(page.page) for page in message.results)
        case CallResults():
            return HEAD_BYTES + sum(_inline(page.page) for page in message.pages)
        case NodeLog():
            return HEAD_BYTES + sum(len(line.text) for line in message.lines)
        case Lease():
            pages = sum(_inline(page.page) for page in message.pages)
            return HEAD_BYTES + pages + sum(_inline(state) for _, state in message.checkpoints)
    return 0


def _inline(blob: Blob) -> int:
    return len(blob.data) if blob.data is not None else 0


class PacedMessages:
    """Between a node and its connection."""

    def __init__(self, send: Callable[[str, Msg], None], throttle: Throttle) -> None:
        self._send = send
        self.throttle = throttle
        self._waiting: deque[tuple[float, str, Msg]] = deque()
        self._pulls: dict[int, asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None

    def send(self, subject: str, message: Msg) -> float:
        """In order, but for what is not held up. Returns the seconds until it goes."""
        throttle = self.throttle
        if not (throttle.limits or self._waiting):
            self._send(subject, message)
            return 0.0
        if isinstance(message, Pull):
            return self._pull(subject, message)
        if isinstance(message, HandIn) and message.pull is not None and throttle.down_wait_s() > 0:
            pull, message = message.pull, msgspec.structs.replace(message, pull=None)
            self._pull(subjects.job(pull.job_id), pull)
        size = size_of(message)
        wait_s = throttle.spend_up(size) if size else 0.0
        if not size or not (wait_s or self._waiting):
            self._send(subject, message)
            return 0.0
        now_s = time.monotonic()
        due_s = max(now_s + wait_s, self._waiting[-1][0] if self._waiting else 0.0)
        self._waiting.append((due_s, subject, message))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(due_s - now_s, self._send_due)
        return due_s - now_s

    def came(self, message: Msg) -> None:
        """So much came down: the next lease is asked for when that is paid off."""
        if self.throttle.limits and (size := size_of(message)):
            self.throttle.spend_down(size)

    def flush(self) -> None:
        """Whatever waits goes now; slots ask again by themselves."""
        for timer in (self._timer, *self._pulls.values()):
            if timer is not None:
                timer.cancel()
        self._timer = None
        self._pulls.clear()
        while self._waiting:
            _, subject, message = self._waiting.popleft()
            self._send(subject, message)

    def _pull(self, subject: str, pull: Pull) -> float:
        """A slot asks for more when what came is paid off, and what it has to send has gone."""
        up_s = max(0.001, self._waiting[-1][0] - time.monotonic()) if self._waiting else 0.0
        wait_s = max(up_s, self.throttle.down_wait_s())
        with contextlib.suppress(KeyError):
            self._pulls.pop(pull.slot).cancel()  # an older one of the slot is of no use
        if wait_s <= 0:
            self._send(subject, pull)
            return 0.0

        def ask() -> None:
            del self._pulls[pull.slot]
            self._pull(subject, pull)

        self._pulls[pull.slot] = asyncio.get_running_loop().call_later(wait_s, ask)
        return wait_s

    def _send_due(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now_s:
            _, subject, message = self._waiting.popleft()
            self._send(subject, message)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._waiting[0][0] - now_s, self._send_due)


def repaced(before: PacedMessages | None, throttle: Throttle, send: Callable[[str, Msg], None]) -> PacedMessages | None:
    """What holds messages to these rates from now on; None where there are none: nothing stands in their way."""
    if throttle.limits:
        return before or PacedMessages(send, throttle)
    if before is not None:
        before.flush()
    return None
