"""The futures of Executor.submit. What their callers want called runs in a thread of its own: it may wait for a lock
whose holder is itself waiting for the pool, and the client's loop, which has the answers, would then stand still."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("concurrent.futures")

this_thread = threading.local()
"""Has `is_loop` where the thread runs an event loop of the SDK's own."""


class CallFuture(Future[T]):
    """Done by the client's loop. Callbacks run in the order in which their futures are done, one after another, in one
    thread for all; in the caller's own where the future is done already or cancelled, as everywhere."""

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        super().add_done_callback(
            lambda future: _calls.put(fn, future) if hasattr(this_thread, "is_loop") else fn(future)
        )


def wait_called() -> None:
    """Wait until the callbacks of all futures done so far have returned. Within a callback: at once."""
    _calls.wait()


class _Calls:
    """The thread, once there is something to call, and what it is to call."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def put(self, fn: Callable[[Any], object], future: Future[Any]) -> None:
        """On the client's loop, which is one thread."""
        self._queue.put(lambda: _call(fn, future))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fallow-callbacks", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        if self._thread is None or threading.current_thread() is self._thread:
            return
        called = threading.Event()
        self._queue.put(called.set)
        called.wait()

    def _run(self) -> None:
        while True:
            self._queue.get()()

    def _forked(self) -> None:
        self._queue, self._thread = SimpleQueue(), None


def _call(fn: Callable[[Any], object], future: Future[Any]) -> None:
    try:
        fn(future)
    except BaseException:
        log.exception("exception calling callback for %r", future)


_calls = _Calls()
