"""Inside gVisor: carries connections to a port of the loopback through sockets that come from outside, one for each.

A program in gVisor's kernel has no socket of the machine's, and can hand none out. So this process, started by the
launcher beside the program, listens in that kernel, asks for a socket of the machine's for every connection that it
accepts, and copies bytes both ways until both have ended.

Standard library only, for any Python from 3.9; it runs beside the launcher.
"""

from __future__ import annotations

import selectors
import socket

PIECE_BYTES = 64 * 1024
WAITING_BYTES = 256 * 1024
"""Of one direction, read but not written yet."""
LIMIT = 256
"""Connections at once."""


class Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.waiting = bytearray()
        self.is_read = False
        """No more comes."""
        self.is_done = False
        """All was written, and the other end told."""

    def read(self) -> None:
        try:
            piece = self.source.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if piece:
            self.waiting += piece
        else:
            self.is_read = True
        self.write()

    def write(self) -> None:
        """Raises nothing: an end that takes no more ends the direction."""
        try:
            while self.waiting:
                del self.waiting[: self.sink.send(self.waiting)]
        except BlockingIOError:
            return
        except OSError:
            self.waiting.clear()
            self.is_read = True
        if self.is_read and not self.is_done:
            self.is_done = True
            try:
                self.sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass


class Carrier:
    """`channel`: a Unix socket; for each byte that is sent there a connected socket comes back with a byte, or a byte
    alone where there is none."""

    def __init__(self, listening: socket.socket, channel: socket.socket) -> None:
        self._listening = listening
        self._channel = channel
        self._selector = selectors.DefaultSelector()
        self._ways: dict[socket.socket, tuple[Way, Way]] = {}
        """What comes from a socket, and what goes to it."""
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(channel, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the channel's other end is closed."""
        while True:
            for key, _ in self._selector.select():
                end = key.fileobj
                if end is self._listening:
                    self._accept()
                elif end is self._channel:
                    return  # nothing comes there unasked but its end
                elif end in self._ways:
                    assert isinstance(end, socket.socket)
                    self._serve(end)

    def _accept(self) -> None:
        try:
            inner, _ = self._listening.accept()
        except OSError:
            return
        outer = self._outside() if len(self._ways) < 2 * LIMIT else None
        if outer is None:
            inner.close()
            return
        there, back = Way(inner, outer), Way(outer, inner)
        self._ways[inner], self._ways[outer] = (there, back), (back, there)
        for end in (inner, outer):
            end.setblocking(False)
            self._selector.register(end, selectors.EVENT_READ)

    def _outside(self) -> socket.socket | None:
        """Raises EOFError where the channel has ended."""
        self._channel.sendall(b"c")
        data, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        if not data:
            raise EOFError
        return socket.socket(fileno=descriptors[0]) if descriptors else None

    def _serve(self, end: socket.socket) -> None:
        coming, going = self._ways[end]
        if not coming.is_read and len(coming.waiting) < WAITING_BYTES:
            coming.read()
        if going.waiting:
            going.write()
        other = coming.sink
        if coming.is_done and going.is_done:
            for each in (end, other):
                if each in self._selector.get_map():
                    self._selector.unregister(each)
                del self._ways[each]
                each.close()
            return
        self._look_at(end)
        self._look_at(other)

    def _look_at(self, end: socket.socket) -> None:
        coming, going = self._ways[end]
        events = 0
        if not coming.is_read and len(coming.waiting) < WAITING_BYTES:
            events |= selectors.EVENT_READ
        if going.waiting:
            events |= selectors.EVENT_WRITE
        registered = self._selector.get_map().get(end)
        if registered is not None and registered.events == events:
            return
        if registered is not None:
            self._selector.unregister(end)
        if events:
            self._selector.register(end, events)


def carry(listening: socket.socket, channel: int) -> None:
    """Until the sandbox ends, or the channel."""
    try:
        Carrier(listening, socket.socket(fileno=channel)).run()
    except (OSError, EOFError):
        pass
