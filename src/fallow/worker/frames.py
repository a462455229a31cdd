"""Length-prefixed frames over a stream socket: for blocking readers and for event loops, without quadratic copies."""

from __future__ import annotations

import socket
import struct

_LENGTH = struct.Struct("<I")
_READ_BYTES = 256 * 1024
MAX_FRAME_BYTES = (1 << 32) - 1


def frame(body: bytes) -> bytes:
    """The frame that carries `body`. Raises ValueError over 4 GiB."""
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes is over the limit of 4 GiB")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Collects what a socket gives into frames. One of more than `most` bytes raises ValueError before it is read."""

    def __init__(self, most: int = MAX_FRAME_BYTES) -> None:
        self._most = most
        self._buffer = bytearray(_READ_BYTES)
        self._start = 0
        self._end = 0
        self.may_have_more = False
        """The last receive filled all the room there was: the socket may hold more."""
        self.descriptors: list[int] = []
        """Descriptors that came along (receive_with_descriptors), in order."""

    def receive(self, sock: socket.socket) -> list[bytes]:
        """Read once and return the frames that are complete. Raises EOFError at the end of the stream, and what
        recv raises (BlockingIOError)."""
        self._make_room()
        with memoryview(self._buffer) as view:
            count = sock.recv_into(view[self._end :])
        self.may_have_more = self._end + count == len(self._buffer)
        return self._took(count)

    def receive_with_descriptors(self, sock: socket.socket, most: int) -> list[bytes]:
        """As receive; descriptors that come along are kept in `descriptors`."""
        data, descriptors, _flags, _address = socket.recv_fds(sock, 65536, most)
        self.descriptors.extend(descriptors)
        self._make_room(len(data))
        self._buffer[self._end : self._end + len(data)] = data
        return self._took(len(data))

    def _took(self, count: int) -> list[bytes]:
        if not count:
            raise EOFError("the other end closed the socket")
        self._end += count
        frames: list[bytes] = []
        while self._end - self._start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, self._start)
            if size > self._most:
                raise ValueError(f"a frame of {size:,} bytes is over the limit of {self._most:,}")
            stop = self._start + _LENGTH.size + size
            if stop > self._end:
                break
            with memoryview(self._buffer) as view:
                frames.append(bytes(view[self._start + _LENGTH.size : stop]))
            self._start = stop
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > 4 * _READ_BYTES:
                self._buffer = bytearray(_READ_BYTES)
        return frames

    def _make_room(self, least: int = 1) -> None:
        """Free space behind _end: for the rest of a frame whose length is known, else `least`."""
        have = self._end - self._start
        need = have + least
        if have >= _LENGTH.size:
            need = max(need, _LENGTH.size + _LENGTH.unpack_from(self._buffer, self._start)[0])
        if self._start + need <= len(self._buffer):
            return
        target = self._buffer if need <= len(self._buffer) else bytearray(need)
        target[:have] = self._buffer[self._start : self._end]
        self._buffer, self._start, self._end = target, 0, have
