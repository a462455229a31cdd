"""What tasks print, shown to the caller as it comes, labelled by task: '[square 17] hello'."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fallow.core.terminal import harmless
from fallow.wire import subjects
from fallow.wire.messages import LogLine, NodeLog

if TYPE_CHECKING:
    from fallow.model.ids import JobId
    from fallow.sdk.client import Client

LINGER_S = 0.3
"""Lines may come a little after the results."""


def label(name: str, index: int, *, single: bool = False) -> str:
    """The text in front of a line."""
    return f"[{name}]" if single or index < 0 else f"[{name} {index}]"


class OutputPrinter:
    """Follows the output of one job."""

    def __init__(self, job_id: JobId, name: str, *, single: bool = False) -> None:
        self._job_id = job_id
        self._name = name
        self._single = single
        self._end: Callable[[], None] | None = None
        self._client: Client | None = None
        # In a notebook the context says to which cell it goes; an empty one, to the one that runs. The calls of a
        # standing job come from any of them.
        self._context = contextvars.Context() if single else contextvars.copy_context()

    async def follow(self, client: Client) -> None:
        self._client = client
        self._end = await client.transport.follow(subjects.log(self._job_id), self._on_lines)

    def end(self, client: Client) -> None:
        """On the loop: stop, when the last lines have had time to come."""
        end, self._end = self._end, None
        if end is not None and not client.closed:
            client.thread.loop.call_later(LINGER_S, end)

    def _on_lines(self, message: Any, _reply: str) -> None:
        if not isinstance(message, NodeLog):
            return
        if self._client is not None:
            self._client.last_output = time.monotonic()
        for line in message.lines:
            self._show(line)

    def _show(self, line: LogLine) -> None:
        stream = sys.stderr if line.stream == "stderr" else sys.stdout
        text = f"{label(self._name, line.index, single=self._single)} {harmless(line.text.rstrip())}\n"
        with contextlib.suppress(Exception):
            self._context.run(_write, stream, text)


def _write(stream: Any, text: str) -> None:
    stream.write(text)
    stream.flush()
