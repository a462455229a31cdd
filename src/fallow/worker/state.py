"""What a task keeps of its state, and the notice that its worker is about to be ended. The public names for this are
in sdk.checkpoint.

A notice comes as a word in the shared map. The helper thread sees it within two fifths of a second, and has the main
thread, where tasks run, call the hooks: there they see the task's objects between two steps of Python, never in the
middle of one. A task inside a long call into C gets no hook called, and loses what it did since it last saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import blake3
import msgspec

from fallow.model.errors import FallowError
from fallow.model.ids import Digest
from fallow.model.job import Blob
from fallow.wire.code import dumps
from fallow.worker import orders
from fallow.worker.channel import Channel
from fallow.worker.failures import traceback_text
from fallow.worker.orders import NOTICE, PHASE, RUNNING, SETTLED

STATE_LIMIT_BYTES = 1 << 30
INLINE_BYTES = 32 * 1024
"""States up to this travel in messages; larger ones go through the blob store."""
HOOK_SIGNAL = "SIGUSR1"
"""Sent by this process to its own main thread."""

Hook = Callable[[], object]


class TaskState:
    """Of the worker: what its order's tasks have saved, and when."""

    def __init__(self, channel: Channel, words: memoryview, scratch: str, in_progress: Callable[[], int]) -> None:
        self._in_progress = in_progress
        self.channel = channel
        self.words = words
        self._scratch = scratch
        self._serial = 0
        self._lock = threading.RLock()
        self.order: orders.Run | None = None
        self.saved: dict[int, Blob] = {}
        self.saved_s: dict[int, float] = {}
        self.hooks: list[Hook] = []
        self._has_handler = False
        self._called = False
        self._settled_index = -1

    # ------------------------------------------------ what tasks ask

    @property
    def index(self) -> int:
        """The task in progress; -1: none."""
        return self._in_progress() if self.order is not None and self.words[PHASE] == RUNNING else -1

    def left_s(self) -> float | None:
        """Seconds until the worker is ended; None: nobody wants that."""
        until = self.words[NOTICE]
        return max(0.0, until / 1e9 - time.monotonic()) if until else None

    def load(self) -> tuple[bool, Any]:
        """(whether there is one, the state that the task in progress saved last)."""
        import pickle

        blob = self.saved.get(self.index)
        if blob is None:
            return False, None
        if blob.data is not None:
            return True, pickle.loads(blob.data)
        path = self.channel.ask("blob", msgspec.msgpack.encode((blob.digest, blob.size))).decode()
        if not path:
            raise OSError(f"the node could not fetch the saved state ({blob.size:,} bytes) from the pool")
        with open(path, "rb") as file:
            return True, pickle.load(file)

    def save(self, value: Any, every_s: float) -> bool:
        """Save the state of the task in progress, unless that was done less than `every_s` ago. After a notice the
        state is saved at once, and the task goes no further: it continues elsewhere."""
        index = self.index
        since = self.saved_s.get(index)
        notified = bool(self.words[NOTICE])
        if not notified and since is not None and time.monotonic() - since < every_s:
            return False
        with self._lock:
            ok = self._save(index, value)
        if notified and ok and self.index == index and threading.current_thread() is threading.main_thread():
            self.words[SETTLED] = 1
            while True:  # until it is killed: what it would do from here on is not kept
                time.sleep(1.0)
        return ok

    def _save(self, index: int, value: Any) -> bool:
        order = self.order
        data = dumps(value)
        if len(data) > STATE_LIMIT_BYTES:
            raise FallowError(
                f"the state of task {index} takes {len(data):,} bytes, and at most {STATE_LIMIT_BYTES:,} can be saved. "
                "Save less: what can be computed or fetched again need not be in it."
            )
        digest = Digest(blake3.blake3(data).hexdigest())
        path = ""
        if len(data) > INLINE_BYTES:
            self._serial += 1
            path = os.path.join(self._scratch, f"state-{os.getpid()}-{self._serial}")
            with open(path, "wb") as file:
                file.write(data)
        blob = Blob(digest, len(data), data if not path else None)
        body = msgspec.msgpack.encode((order.token if order is not None else (0, 0), index, blob, path))
        try:
            ok = self.channel.ask("checkpoint", body) != b""
        finally:
            if path:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        if ok:
            self.saved[index] = blob
            self.saved_s[index] = time.monotonic()
        else:
            print(f"the state of task {index} could not be saved; the next call tries again", file=sys.stderr)
        return ok

    @contextlib.contextmanager
    def hook(self, call: Hook) -> Iterator[None]:
        self._handle()
        self.hooks.append(call)
        try:
            yield
        finally:
            self.hooks.remove(call)

    # ------------------------------------------------ the notice

    def _handle(self) -> None:
        if not self._has_handler and threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, HOOK_SIGNAL), lambda *_: self._call_hooks())
            self._has_handler = True

    def notice(self) -> None:
        """Helper thread, again and again after the notice."""
        if self.hooks and self._has_handler and not self._called:
            signal.pthread_kill(threading.main_thread().ident or 0, getattr(signal, HOOK_SIGNAL))

    def _call_hooks(self) -> None:
        """Main thread, between two steps of the task."""
        if self._called or not self.words[NOTICE] or not self.hooks:
            return
        if not self.channel.is_free:
            return  # the task is just saying something to the agent: the helper asks again
        self._called = True
        index = self.index
        for call in reversed(self.hooks):
            try:
                call()
            except Exception as error:
                print(f"a hook for preemption failed:\n{traceback_text(error)}", file=sys.stderr)
        if self.index == index:
            self.words[SETTLED] = 1


_state: TaskState | None = None
_pid = 0


def install(channel: Channel, words: memoryview, scratch: str, in_progress: Callable[[], int]) -> None:
    """Called once by the worker. `in_progress`: the task that an order is at."""
    global _state, _pid
    _state, _pid = TaskState(channel, words, scratch, in_progress), os.getpid()


def current() -> TaskState | None:
    """Inside a task; None elsewhere, and in processes that a task has forked."""
    return _state if _state is not None and _pid == os.getpid() and _state.index >= 0 else None


def begin(order: orders.Run) -> None:
    """An order begins."""
    if _state is not None:
        _state.order = order
        _state.saved = dict(order.checkpoints)
        if _state.saved_s:
            _state.saved_s = {}


def end() -> None:
    """No task of the order runs any more."""
    if _state is not None:
        _state.order = None
        if _state.hooks:
            _state.hooks.clear()


def notice() -> None:
    if _state is not None:
        _state.notice()
