"""What tasks print, gathered into few messages and bounded, on its way to whoever follows the job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fallow.agent.worker_api import OutputLine
from fallow.model.ids import JobId
from fallow.wire import subjects
from fallow.wire.messages import LogLine, Msg, NodeLog

BATCH_S = 0.1
"""Lines wait so long for others at most."""
MESSAGE_BYTES = 256 * 1024
RATE_BYTES_PER_S = 1024 * 1024
BURST_BYTES = 4 * 1024 * 1024
LINE_BYTES = 256


class LogSender:
    """One for the node. A job that prints faster than RATE_BYTES_PER_S has lines dropped, and one that says so."""

    def __init__(self, node_name: str, send: Callable[[str, Msg], None]) -> None:
        self._node = node_name
        self._send = send
        self._jobs: dict[JobId, _JobLines] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, job_id: JobId, lines: list[OutputLine]) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            job = self._jobs[job_id] = _JobLines()
        job.add(lines, self._node, time.monotonic(), time.time())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self.flush)

    def flush(self) -> None:
        """Send what is gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for job_id, job in self._jobs.items():
            self._send_lines(job_id, job)

    def flush_job(self, job_id: JobId) -> None:
        """Send what is gathered of the job: results follow, after which its script may end and hear nothing more."""
        job = self._jobs.get(job_id)
        if job is not None and job.lines:
            self._send_lines(job_id, job)

    def _send_lines(self, job_id: JobId, job: _JobLines) -> None:
        for batch in job.take(self._node):
            self._send(subjects.log(job_id), NodeLog(job_id, self._node, batch))

    def forget_job(self, job_id: JobId) -> None:
        """Send what is left of the job, and forget its rate."""
        self.flush()
        self._jobs.pop(job_id, None)


class _JobLines:
    """A token bucket in bytes, and the lines of one batch."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self._allowance = float(BURST_BYTES)
        self._filled_s = 0.0
        self._dropped = 0

    def add(self, lines: list[OutputLine], node: str, now_s: float, unix_s: float) -> None:
        if self._filled_s:
            self._allowance = min(BURST_BYTES, self._allowance + (now_s - self._filled_s) * RATE_BYTES_PER_S)
        self._filled_s = now_s
        for line in lines:
            cost = LINE_BYTES + len(line.text)
            if cost > self._allowance:
                self._dropped += 1
                continue
            self._allowance -= cost
            self.lines.append(LogLine(0, node, line.index, line.stream, line.text, unix_s))

    def take(self, node: str) -> list[tuple[LogLine, ...]]:
        lines, self.lines = self.lines, []
        if self._dropped and self._allowance > BURST_BYTES / 4:
            text = f"[{self._dropped} lines were dropped: the job prints faster than {RATE_BYTES_PER_S >> 20} MB/s]"
            lines.append(LogLine(0, node, -1, "stderr", text))
            self._dropped = 0
        batches: list[tuple[LogLine, ...]] = []
        batch: list[LogLine] = []
        size = 0
        for line in lines:
            batch.append(line)
            size += LINE_BYTES + len(line.text)
            if size >= MESSAGE_BYTES:
                batches.append(tuple(batch))
                batch, size = [], 0
        if batch:
            batches.append(tuple(batch))
        return batches
