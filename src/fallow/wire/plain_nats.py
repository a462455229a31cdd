"""A few words of NATS' own protocol over a blocking socket: to ask one certain server, and no other in its place.

For questions that an operator's program puts to each server of a cluster by itself. All else goes through connection.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from fallow.model.errors import PoolRefused, PoolUnreachable

CONNECT_S = 1.0
_READ_BYTES = 65536
_LINE_LIMIT_BYTES = 1 << 20


class PlainNats:
    """A connection to the server at 'HOST:PORT' alone, to be used for `limit_s` seconds. Raises PoolUnreachable where
    nobody answers as NATS does, PoolRefused where the credentials are not taken."""

    def __init__(self, server: str, credentials: dict[str, str], limit_s: float) -> None:
        self._end = time.monotonic() + limit_s
        self._buffer = b""
        self._heard: list[tuple[str, bytes]] = []
        host, _, port = server.rpartition(":")
        self.server = server
        try:
            self._socket = socket.create_connection((host.strip("[]"), int(port)), min(limit_s, CONNECT_S))
        except OSError as error:
            raise PoolUnreachable(f"nothing answers at {server} ({error.strerror or error}).") from None
        try:
            self.info: dict[str, Any] = self._greeting()
            said = {"verbose": False, "pedantic": False, "lang": "python", "version": "1", "name": "fallow look"}
            self._send(f"CONNECT {json.dumps(said | credentials)}\r\nPING\r\n".encode())
            self._until_pong()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> PlainNats:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def subscribe(self, subject: str) -> None:
        """The server knows of it when this returns."""
        self._send(f"SUB {subject} 1\r\nPING\r\n".encode())
        self._until_pong()

    def publish(self, subject: str, data: bytes = b"") -> None:
        self._send(f"PUB {subject} {len(data)}\r\n".encode() + data + b"\r\n")

    def heard(self) -> list[tuple[str, bytes]]:
        """(subject, data) of what has come by now on what was subscribed to."""
        for _ in self._lines(block=False):
            pass
        found, self._heard = self._heard, []
        return found

    # ------------------------------------------------------------ inside

    def _greeting(self) -> dict[str, Any]:
        word, _, rest = next(self._lines()).partition(b" ")
        if word.upper() != b"INFO":
            raise PoolUnreachable(f"what answers at {self.server} is no NATS server.")
        with contextlib.suppress(ValueError):
            return dict(json.loads(rest))
        raise PoolUnreachable(f"what answers at {self.server} is no NATS server.")

    def _until_pong(self) -> None:
        for line in self._lines():
            if line.upper() == b"PONG":
                return

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(max(0.001, self._end - time.monotonic()))
            self._socket.sendall(data)
        except OSError as error:
            raise PoolUnreachable(f"{self.server} has ended the connection ({error.strerror or error}).") from None

    def _lines(self, block: bool = True) -> Iterator[bytes]:
        """What the server says, line by line; messages are put aside, and its PING is answered. Ends where nothing
        more is there and it is not to `block`."""
        while True:
            while (line := self._next_line()) is not None:
                word = line.split(b" ", 1)[0].upper()
                if word == b"PING":
                    self._send(b"PONG\r\n")
                elif word == b"-ERR":
                    self._refused(line[4:].decode(errors="replace").strip(" '"))
                else:
                    yield line
            left_s = self._end - time.monotonic()
            if not block and not select.select([self], [], [], 0)[0]:
                return
            self._read(left_s)

    def _read(self, left_s: float) -> None:
        if left_s <= 0 or len(self._buffer) > _LINE_LIMIT_BYTES:
            raise PoolUnreachable(f"{self.server} takes connections, and does not answer.")
        try:
            self._socket.settimeout(left_s)
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            raise PoolUnreachable(f"{self.server} takes connections, and does not answer.") from None
        except OSError as error:
            raise PoolUnreachable(f"{self.server} has ended the connection ({error.strerror or error}).") from None
        if not data:
            raise PoolUnreachable(f"{self.server} has ended the connection.")
        self._buffer += data

    def _next_line(self) -> bytes | None:
        """The next whole line; None: not yet. A message is put aside with its data."""
        while True:
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return None
            if not line.upper().startswith(b"MSG "):
                self._buffer = rest
                return line
            words = line.decode().split()
            size = int(words[-1])
            if len(rest) < size + 2:
                return None
            self._heard.append((words[1], rest[:size]))
            self._buffer = rest[size + 2 :]

    def _refused(self, words: str) -> None:
        if "authorization" in words.lower():
            raise PoolRefused(f"{self.server} refused the token.", "refused")
        raise PoolUnreachable(f"{self.server} has ended the connection: {words}.")
