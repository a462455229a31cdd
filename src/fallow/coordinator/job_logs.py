"""Printed output of tasks, kept as a bounded tail per job."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from fallow.coordinator.context import Context
from fallow.model.ids import JobId
from fallow.store.protocol import AppendLogs, StoreError
from fallow.wire.messages import GetLogs, LogLine, LogLines, NodeLog, Refused

log = logging.getLogger(__name__)

KEEP_LINES = 10_000
BUFFER_LINES = 20_000
"""Lines of one job waiting to be written; beyond it the newest are dropped (followers saw them all the same)."""
READ_LIMIT = 5_000

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LogLine)


class JobLogs:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._buffers: dict[JobId, list[LogLine]] = {}
        self.on_lines: Callable[[], None] = lambda: None
        """There is something to `flush`."""
        self._next_seq: dict[JobId, int] = {}
        self._epochs: dict[JobId, int] = {}

    def keep(self, message: NodeLog) -> None:
        buffer = self._buffers.setdefault(message.job_id, [])
        room = BUFFER_LINES - len(buffer)
        if message.lines and not buffer:
            self.on_lines()
        buffer.extend(replace(line, node=message.node) for line in message.lines[:room])

    def flush(self) -> None:
        """Write what has come in."""
        for job_id, lines in list(self._buffers.items()):
            if not lines:
                continue
            self._buffers[job_id] = []
            self._context.loop.create_task(self._write(job_id, lines))

    async def _write(self, job_id: JobId, lines: list[LogLine]) -> None:
        try:
            await self._append(job_id, lines)
        except StoreError as error:
            log.info("cannot look up the output of %s, trying again: %s", job_id, error)
            buffer = self._buffers.get(job_id)
            if buffer is not None:
                buffer[:0] = lines[: BUFFER_LINES - len(buffer)]

    async def _append(self, job_id: JobId, lines: list[LogLine]) -> None:
        context = self._context
        if job_id not in self._next_seq:
            stored = await context.loop.run_in_executor(context.reader, context.store.get_job, job_id)
            if stored is None:
                return
            old = await context.loop.run_in_executor(context.reader, context.store.read_logs, job_id, 0, 1 << 30)
            self._next_seq.setdefault(job_id, old[-1][0] + 1 if old else 1)
            self._epochs[job_id] = stored.epoch
        first = self._next_seq[job_id]
        self._next_seq[job_id] = first + len(lines)
        rows = tuple((first + at, _encoder.encode(replace(line, seq=first + at))) for at, line in enumerate(lines))
        context.journal.append([AppendLogs(job_id, self._epochs[job_id], rows, KEEP_LINES)], may_wait=True)

    def read(self, message: GetLogs, reply: str) -> None:
        self._context.loop.create_task(self._read(message, reply))

    async def _read(self, message: GetLogs, reply: str) -> None:
        context = self._context
        limit = max(1, min(message.limit, READ_LIMIT))
        try:
            rows = await context.questions.ask(context.store.read_logs, message.job_id, message.after_seq, limit)
        except StoreError as error:
            context.connection.send(reply, Refused("overloaded", f"the store cannot be read: {error}"))
            return
        lines: list[LogLine] = []
        size = 0
        for _, row in rows:
            size += len(row)
            if size > 2_000_000:
                break
            lines.append(_decoder.decode(row))
        context.connection.send(reply, LogLines(tuple(lines)))

    def forget(self, job_id: JobId) -> None:
        self._buffers.pop(job_id, None)
        self._next_seq.pop(job_id, None)
        self._epochs.pop(job_id, None)
