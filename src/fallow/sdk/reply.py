"""Single calls that are out, and where the answer to each goes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from fallow.sdk.failures import item_exception
from fallow.wire.messages import InputPage
from fallow.wire.page import PageError, decode_items


class Sink(Protocol):
    """Where an answer goes: a concurrent.futures.Future, or a Reply."""

    def set_running_or_notify_cancel(self) -> bool: ...

    def set_result(self, result: Any) -> None: ...

    def set_exception(self, exception: BaseException | None) -> None: ...


class Awaited(Future[Any]):
    """For asyncio: whose futures (before Python 3.12) cannot hold a StopIteration, and leave whoever awaits waiting."""

    index = -1

    def set_exception(self, exception: BaseException | None) -> None:
        if isinstance(exception, StopIteration):
            error = RuntimeError("the task raised StopIteration")
            error.__cause__, exception = exception, error
        super().set_exception(exception)


class Reply:
    """What a thread that waits for one call waits on: a lock is all it takes."""

    __slots__ = ("_error", "_lock", "_page", "index", "plain")

    def __init__(self, plain: bool = False) -> None:
        self.plain = plain
        self._lock = threading.Lock()
        self._lock.acquire()
        self._page: tuple[Any, int] | None = None
        self._error: BaseException | None = None
        self.index = -1

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def set_page(self, buffer: Any, offset: int) -> None:
        """The answer, still encoded: it is decoded by the thread that waits."""
        self._page = (buffer, offset)
        self._lock.release()

    def set_result(self, result: Any) -> None:
        raise NotImplementedError("answers for a Reply come as pages")

    def set_exception(self, exception: BaseException | None) -> None:
        self._error = exception
        self._lock.release()

    def wait(self, name: str) -> Any:
        """The result; raises what the task raised."""
        self._lock.acquire()
        if self._page is None:
            assert self._error is not None
            raise self._error
        buffer, offset = self._page
        items = decode_items(buffer, self.plain)
        if not 0 <= offset < len(items):
            raise PageError(f"a page of {len(items)} results came for the one at {offset}")
        item = items[offset]
        error = item_exception(item, -1, name, self.plain)
        if error is not None:
            raise error
        return item


class Replies:
    """Replies that have come, while their callers are not woken yet. A thread that is woken while the waking one still
    has the interpreter has to be woken twice: so that comes last of all."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[tuple[Reply, Any, int]] = []

    def add(self, reply: Reply, buffer: Any, offset: int) -> None:
        self._waiting.append((reply, buffer, offset))

    def wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for reply, buffer, offset in waiting:
            reply.set_page(buffer, offset)


def give_out(sinks: Sequence[Sink | None], buffer: Any, offset: int, plain: bool, name: str) -> None:
    """The results of a page from `offset` on, to whoever waits for them."""
    try:
        items = decode_items(buffer, plain)
        if not 0 <= offset < offset + len(sinks) <= len(items):
            raise PageError(f"a page of {len(items)} results came for {len(sinks)} calls from {offset} on")
    except Exception as error:
        for sink in sinks:
            if sink is not None:
                sink.set_exception(error)
        return
    for at, sink in enumerate(sinks, offset):
        if sink is None:
            continue
        if type(sink) is Reply:
            sink.set_page(buffer, at)
            continue
        failed = item_exception(items[at], -1, name, plain)
        if failed is not None:
            sink.set_exception(failed)
        else:
            sink.set_result(items[at])


class SentPage:
    """A page that is out, and how many of its calls are not answered."""

    __slots__ = ("left", "page")

    def __init__(self, page: InputPage) -> None:
        self.page = page
        self.left = page.stop - page.start
