from __future__ import annotations

import socket
import threading

import pytest

from fallow.worker.frames import FrameReader, frame


@pytest.mark.parametrize("sizes", [[0, 1, 2], [300_000, 5, 2_000_000, 0], [65_532] * 20])
def test_frames_come_out_as_they_went_in(sizes: list[int]) -> None:
    bodies = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(target=left.sendall, args=(b"".join(map(frame, bodies)),))
        sender.start()
        reader = FrameReader()
        found: list[bytes] = []
        while len(found) < len(bodies):
            found += reader.receive(right)
        sender.join()
    assert found == bodies


def test_frames_that_come_byte_by_byte() -> None:
    left, right = socket.socketpair()
    with left, right:
        reader = FrameReader()
        found: list[bytes] = []
        for byte in frame(b"abc") + frame(b""):
            left.send(bytes([byte]))
            found += reader.receive(right)
        assert found == [b"abc", b""]
        left.close()
        with pytest.raises(EOFError):
            reader.receive(right)
