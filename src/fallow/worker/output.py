"""What tasks print. sys.stdout and sys.stderr write whole lines, labelled with the task, to the pipes that the agent
reads; what C code prints to descriptors 1 and 2 arrives there without a label. Nothing printed is lost when the process
dies, and a flood is cut here: the first lines and the last ones are kept, and a line says how much was left out.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fallow.worker.orders import LABEL, LABEL_END

LINE_LIMIT = 8 * 1024
"""Characters of a line that are kept."""
BURST_BYTES = 256 * 1024
BURST_LINES = 2000
BYTES_PER_S = 64 * 1024
LINES_PER_S = 200
TAIL_LINES = 20
TAIL_LINE_LIMIT = 1024


class Bucket:
    """Tokens for lines and bytes: a burst, then a steady rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: float = BURST_LINES
        self._bytes: float = BURST_BYTES
        self._at = clock()

    def take(self, size: int) -> bool:
        """Spend tokens for one line of `size` bytes; False if there are none."""
        if self._lines < 1 or self._bytes < size:
            self._refill()
            if self._lines < 1 or self._bytes < size:
                return False
        self._lines -= 1
        self._bytes -= size
        return True

    def recovered(self) -> bool:
        """Enough tokens to end a gap in the output."""
        self._refill()
        return self._lines >= BURST_LINES / 10 and self._bytes >= BURST_BYTES / 10

    def _refill(self) -> None:
        now = self._clock()
        passed, self._at = now - self._at, now
        self._lines = min(BURST_LINES, self._lines + passed * LINES_PER_S)
        self._bytes = min(BURST_BYTES, self._bytes + passed * BYTES_PER_S)


class Gap:
    """Lines that were left out: counted, the last of them kept."""

    def __init__(self) -> None:
        self.lines = 0
        self.size = 0
        self.tail: deque[tuple[int, str]] = deque(maxlen=TAIL_LINES)

    def add(self, index: int, text: str) -> None:
        self.lines += 1
        self.size += len(text)
        self.tail.append((index, text[:TAIL_LINE_LIMIT]))

    def drain(self) -> list[tuple[int, str]]:
        """The lines that end the gap: a note, then the tail."""
        if not self.lines:
            return []
        dropped = self.lines - len(self.tail)
        size = self.size - sum(len(text) for _, text in self.tail)
        note = (
            [(-1, f"[{dropped} lines, {max(0, size):,} characters left out: printed too fast]")] if dropped > 0 else []
        )
        lines = note + list(self.tail)
        self.lines = self.size = 0
        self.tail.clear()
        return lines


class TaskStream(io.TextIOBase):
    """sys.stdout or sys.stderr of a worker."""

    def __init__(self, descriptor: int, index: Callable[[], int]) -> None:
        self._descriptor = descriptor
        self._index = index
        self._lock = threading.RLock()
        self._partial = ""
        self._partial_index = -1
        self._bucket = Bucket()
        self._gap = Gap()
        self._binary: io.BufferedWriter | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> io.BufferedWriter:
        """For bytes: they go out without a label."""
        if self._binary is None:
            self._binary = io.BufferedWriter(io.FileIO(self._descriptor, "w", closefd=False), 4096)
        return self._binary

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._lock:
            index = self._index()
            if self._partial and index != self._partial_index:
                self._line(self._partial_index, self._partial)
                self._partial = ""
            self._partial_index = index
            if "\n" not in text:
                self._partial += text if len(self._partial) < LINE_LIMIT else ""
            else:
                first, *rest = text.split("\n")
                self._line(index, self._partial + first)
                for line in rest[:-1]:
                    self._line(index, line)
                self._partial = rest[-1]
        return len(text)

    def flush(self) -> None:
        if self._binary is not None:
            self._binary.flush()

    def finish(self) -> None:
        """At the end of an order: what has no line end yet goes out, and so does the tail of a flood."""
        with self._lock:
            if self._partial:
                self._line(self._partial_index, self._partial)
                self._partial = ""
            if self._gap.lines and self._bucket.recovered():
                self._end_gap()
        self.flush()

    def close_gap(self) -> None:
        """End a gap whatever was spent: the worker ends, or has nothing to do."""
        with self._lock:
            self._end_gap()

    @property
    def has_gap(self) -> bool:
        return self._gap.lines > 0

    def _line(self, index: int, text: str) -> None:
        if self._gap.lines:
            if not self._bucket.recovered():
                self._gap.add(index, text)
                return
            self._end_gap()
        if not self._bucket.take(min(len(text), LINE_LIMIT)):
            self._gap.add(index, text)
            return
        self._put(index, text)

    def _end_gap(self) -> None:
        for index, text in self._gap.drain():
            self._put(index, text)

    def _put(self, index: int, text: str) -> None:
        if len(text) > LINE_LIMIT:
            text = f"{text[:LINE_LIMIT]} [... line of {len(text):,} characters]"
        body = text.replace("\r", "").encode("utf-8", "backslashreplace")
        data = LABEL + str(index).encode() + LABEL_END + body + b"\n"
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:  # nobody reads any more
                return


class Output:
    """Both streams of this process."""

    def __init__(self, index: Callable[[], int]) -> None:
        self._streams = (TaskStream(1, index), TaskStream(2, index))

    def install(self) -> None:
        streams: tuple[Any, Any] = self._streams
        sys.stdout, sys.stderr = streams
        vars(sys)["__stdout__"], vars(sys)["__stderr__"] = streams

    def finish(self) -> None:
        for stream in self._streams:
            stream.finish()

    def close(self) -> None:
        for stream in self._streams:
            stream.finish()
            stream.close_gap()

    def idle(self) -> bool:
        """Called now and then while the worker does nothing: ends gaps. True if there was none."""
        busy = False
        for stream in self._streams:
            if stream.has_gap:
                stream.close_gap()
                busy = True
        return not busy
