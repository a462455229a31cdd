"""The pipes that a worker's output comes through: labelled lines of tasks, and whatever C code prints."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable

from fallow.agent.worker_api import OutputLine
from fallow.worker.orders import LABEL, LABEL_END
from fallow.worker.output import LINE_LIMIT, Bucket, Gap

READ_BYTES = 256 * 1024
DRAIN_READS = 64
"""More than a pipe holds: what a task has started may go on writing."""
KEPT_LINES = 60
"""Last unlabelled lines of stderr: the words of a crash."""


class OutputPipe:
    """One pipe's reading end (non-blocking). Lines without a label count against a rate, as those with one did in
    the worker."""

    def __init__(self, descriptor: int, stream: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.descriptor = descriptor
        self._stream = stream
        self._partial = b""
        self._bucket = Bucket(clock)
        self._gap = Gap()
        self.last_words: deque[str] = deque(maxlen=KEPT_LINES)
        self.muted = False
        """Lines without a label are only kept in last_words: it is the stack of a worker that ends."""

    def read(self, index: int) -> list[OutputLine]:
        """Read once what is there; lines without a label get `index`. Empty when there is nothing."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except (BlockingIOError, OSError):
            return []
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[: LINE_LIMIT + 64]
        out: list[OutputLine] = []
        for line in lines:
            self._line(line, index, out)
        return out

    def drain(self, index: int) -> list[OutputLine]:
        """All that is left: the worker is gone, or an order ended."""
        out: list[OutputLine] = []
        for _ in range(DRAIN_READS):
            if not (lines := self.read(index)):
                break
            out += lines
        if self._partial:
            self._line(self._partial, index, out)
            self._partial = b""
        self._end_gap(out)
        return out

    def _line(self, line: bytes, index: int, out: list[OutputLine]) -> None:
        if line.startswith(LABEL):
            label, _, body = line[1:].partition(LABEL_END)
            if label.lstrip(b"-").isdigit():
                out.append(OutputLine(int(label), self._stream, body.decode("utf-8", "replace")))
                return
        text = line[:LINE_LIMIT].decode("utf-8", "replace").rstrip("\r")
        if len(line) > LINE_LIMIT:
            text += " [... line cut]"
        self.last_words.append(text)
        if self.muted:
            return
        self.muted = text.startswith("Fatal Python error: ")
        if self._gap.lines and self._bucket.recovered():
            self._end_gap(out)
        if self._gap.lines or not self._bucket.take(len(line)):
            self._gap.add(index, text)
        else:
            out.append(OutputLine(index, self._stream, text))

    def _end_gap(self, out: list[OutputLine]) -> None:
        out += [OutputLine(index, self._stream, text) for index, text in self._gap.drain()]

    def close(self) -> None:
        os.close(self.descriptor)
