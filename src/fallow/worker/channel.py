"""A worker's socket to its agent. Any thread may send; one thread at a time reads.

The main thread reads while it has no order. Only when a task uses the bridge (worker.nested) does a reader thread take
over for good, and orders then reach the main thread through a queue: single calls pay for no thread switch.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable

from fallow.worker import orders
from fallow.worker.frames import FrameReader, frame


class Channel:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self._reader = FrameReader()
        self._send_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._frames: list[bytes] = []
        self._orders: queue.SimpleQueue[orders.Run | orders.Stop] = queue.SimpleQueue()
        self._bridged = False
        self._serial = 0
        self._answers: dict[int, queue.SimpleQueue[bytes]] = {}
        self._on_tell: Callable[[bytes], None] | None = None

    def send(self, message: orders.FromWorker) -> None:
        """Send; blocks while the agent does not read. An agent that is gone ends this process."""
        if os.getpid() != self._pid:
            os._exit(0)  # a child that a task forked came back out of the task: it must not speak for its parent
        data = frame(orders.encode(message))
        with self._send_lock:
            try:
                self._sock.sendall(data)
            except OSError:
                os._exit(1)

    @property
    def is_free(self) -> bool:
        """No thread is sending at this moment."""
        if not self._send_lock.acquire(blocking=False):
            return False
        self._send_lock.release()
        return True

    def next_order(self) -> orders.Run | orders.Stop:
        """Wait for the next order (main thread)."""
        while True:
            if self._bridged:
                return self._orders.get()
            with self._read_lock:
                self._dispatch()
            if not self._bridged:
                try:
                    return self._orders.get_nowait()
                except queue.Empty:
                    continue

    def ask(self, kind: str, body: bytes) -> bytes:
        """Ask the agent and wait for its answer, from any thread."""
        answer: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        with self._send_lock:
            self._serial += 1
            serial = self._serial
            self._answers[serial] = answer
        self._bridge()
        self.send(orders.Ask(serial, kind, body))
        return answer.get()

    def on_tell(self, callback: Callable[[bytes], None]) -> None:
        """Call `callback` on the reader thread with every message for a nested client."""
        self._on_tell = callback
        self._bridge()

    def _bridge(self) -> None:
        with self._send_lock:
            if self._bridged:
                return
            self._bridged = True
        threading.Thread(target=self._pump, name="fallow-bridge", daemon=True).start()

    def _pump(self) -> None:
        with self._read_lock:
            while True:
                self._dispatch()

    def _dispatch(self) -> None:
        while not self._frames:
            try:
                self._frames = self._reader.receive(self._sock)
            except (EOFError, OSError):
                os._exit(0)  # the agent is gone, and nobody is left to work for
        message = orders.decode_to_worker(self._frames.pop(0))
        if isinstance(message, orders.Run | orders.Stop):
            self._orders.put(message)
        elif isinstance(message, orders.Answer):
            waiting = self._answers.pop(message.serial, None)
            if waiting is not None:
                waiting.put(message.body)
        elif self._on_tell is not None:
            self._on_tell(message.body)
