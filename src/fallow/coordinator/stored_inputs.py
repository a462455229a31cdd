"""Inputs whose bytes only the store has: read once for all leases that want them, and kept for the next ones.

So it is with a job that came from another coordinator, and with one whose inputs outgrew what is kept of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from fallow.coordinator.context import Context
from fallow.coordinator.input_index import InputIndex
from fallow.model.ids import JobId
from fallow.model.job import Blob
from fallow.model.parts import InputPage
from fallow.store.protocol import StoreError

log = logging.getLogger(__name__)

Take = Callable[[Sequence[InputPage]], None]


class StoredInputs:
    """Of one job. What cannot be read is not told: whoever wanted it asks again."""

    def __init__(self, context: Context, job_id: JobId, inputs: InputIndex) -> None:
        self._context = context
        self._job_id = job_id
        self._inputs = inputs
        self._waiting: dict[tuple[int, ...], list[tuple[Sequence[InputPage], Take]]] = {}

    def fill(self, pages: Sequence[InputPage], take: Take) -> None:
        """Call `take` with the pages and their bytes: at once where those are here, else when they have been read."""
        missing = tuple(page.start for page in pages if page.page.data is None and self._inputs.is_let_go(page.start))
        if not missing:
            take(pages)
            return
        waiting = self._waiting.get(missing)
        if waiting is not None:
            waiting.append((pages, take))
            return
        self._waiting[missing] = [(pages, take)]
        context = self._context
        read = context.loop.run_in_executor(context.reader, context.store.read_input, self._job_id, missing)
        read.add_done_callback(partial(self._read, missing))

    def _read(self, missing: tuple[int, ...], read: asyncio.Future[dict[int, Blob]]) -> None:
        waiting = self._waiting.pop(missing)
        try:
            blobs = read.result()
        except StoreError as error:
            log.warning("cannot read inputs of %s, whose lease will be given again: %s", self._job_id, error)
            return
        for start, blob in blobs.items():
            self._inputs.put_back(start, blob)
        for pages, take in waiting:
            take([replace(page, page=blobs.get(page.start, page.page)) for page in pages])
