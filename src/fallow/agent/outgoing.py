"""What an agent sends to one worker: whole frames, as fast as the worker takes them."""

from __future__ import annotations

import asyncio
import socket
from collections import deque


class Outgoing:
    """Frames that wait for a non-blocking socket. Use from one event loop."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._waiting: deque[memoryview] = deque()
        self._are_answers: deque[bool] = deque()
        self._waits_to_write = False
        self.unread_bytes = 0
        """Of frames that wait."""
        self.unread_answers = 0
        """Frames among them that answer requests."""

    def put(self, data: bytes, is_answer: bool = False) -> None:
        """Send it, now or as soon as the worker has read what comes before."""
        self._waiting.append(memoryview(data))
        self._are_answers.append(is_answer)
        self.unread_bytes += len(data)
        self.unread_answers += is_answer
        if len(self._waiting) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                data = self._waiting[0]
                sent = self._sock.send(data)
                self.unread_bytes -= sent
                if sent < len(data):
                    self._waiting[0] = data[sent:]
                else:
                    self._waiting.popleft()
                    self.unread_answers -= self._are_answers.popleft()
        except BlockingIOError:
            if not self._waits_to_write:
                self._waits_to_write = True
                self._loop.add_writer(self._sock.fileno(), self._write)
            return
        except OSError:  # the worker is gone: its zygote tells
            self._waiting.clear()
            self._are_answers.clear()
            self.unread_bytes = self.unread_answers = 0
        if self._waits_to_write:
            self._waits_to_write = False
            self._loop.remove_writer(self._sock.fileno())

    def close(self) -> None:
        """Before the socket is closed."""
        self._loop.remove_writer(self._sock.fileno())
