"""Calls into a library that may never return: a driver hangs when its device does, and the agent must not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Hangs(Exception):
    """No answer in time; or an earlier call is still not answered."""


class Patience:
    """One call at a time, in a thread of its own. From any thread; goes on by itself when a call returns after all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self.hangs = False
        """A call has not been answered in time, nor since."""
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], SimpleQueue[Any]]] = SimpleQueue()

    def call(self, wait_s: float, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Its answer, or what it raised. Raises Hangs after `wait_s` seconds, and at once while it hangs."""
        if self.hangs:
            raise Hangs
        with self._lock:
            if self._pid != os.getpid():
                # (A thread does not live on in a forked process.)
                self._pid, self._calls = os.getpid(), SimpleQueue()
                threading.Thread(target=self._run, args=(self._calls,), name="driver", daemon=True).start()
            calls = self._calls
        answer: SimpleQueue[Any] = SimpleQueue()
        calls.put((function, arguments, answer))
        try:
            value, error = answer.get(timeout=wait_s)
        except Empty:
            self.hangs = True
            raise Hangs from None
        if error is not None:
            raise error
        found: Answer = value
        return found

    def _run(self, calls: SimpleQueue[Any]) -> None:
        while True:
            function, arguments, answer = calls.get()
            try:
                answer.put((function(*arguments), None))
            except BaseException as error:
                answer.put((None, error))
            if calls.empty():
                self.hangs = False
