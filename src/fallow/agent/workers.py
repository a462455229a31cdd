"""Where workers come from: one zygote for each environment, which forks warm workers within milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from fallow.agent.limits.priority import lower_priority
from fallow.agent.worker_api import WorkerCallbacks, WorkerProcess
from fallow.model.job import GpuSpec

if TYPE_CHECKING:
    from fallow.agent.zygote import Zygote

log = logging.getLogger("fallow.agent")

ZYGOTES_LIMIT = 4
"""Zygotes without workers that are kept for later."""
IDLE_S = 120.0


class WorkerKind(Struct, frozen=True):
    """What tells workers apart: a job can run on any worker of its kind."""

    python: str
    """Path of the interpreter."""
    modules: str = ""
    """Folder of the customer's own modules, first on sys.path; '': none."""
    cpu: int = 1
    """Threads that BLAS and OpenMP get."""
    gpu: GpuSpec = GpuSpec()


def own_kind() -> WorkerKind:
    """Workers in the agent's own interpreter, for jobs without requirements."""
    return WorkerKind(sys.executable)


class Workers:
    """Starts workers, and the zygotes that they need. `scratch`: a folder for this run of the agent."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._zygotes: dict[str, asyncio.Task[Zygote]] = {}
        self._used_s: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._serial = 0
        self.priority = (0, False)
        """Niceness of zygotes and workers, and whether they read and write only when nobody else does."""

    def warm(self, kind: WorkerKind) -> None:
        """Start the zygote of this kind now."""
        self._zygote(kind.python)

    def _zygote(self, python: str) -> asyncio.Task[Zygote]:
        task = self._zygotes.get(python)
        if task is not None and task.done() and (task.cancelled() or task.exception() is not None):
            task = None
        if task is None:
            task = asyncio.ensure_future(self._start_zygote(python))
            # A failure is told to whoever wants a worker; nobody may want one.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._zygotes[python] = task
        self._used_s[python] = time.monotonic()
        return task

    async def _start_zygote(self, python: str) -> Zygote:
        from fallow.agent.zygote import start_zygote

        self._serial += 1
        return await start_zygote(python, (), self._scratch / f"zygote-{self._serial}", 1)

    async def start(
        self, kind: WorkerKind, slot: int, callbacks: WorkerCallbacks, environment: Mapping[str, str]
    ) -> WorkerProcess:
        """A warm worker, with these variables. Raises EnvironmentFailed or OSError when it cannot be had. Whoever gets
        one says `ended`."""
        spawning = asyncio.ensure_future(self._spawn(kind, slot, callbacks, environment))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # The zygote may have forked it already: it must not live on without an owner.
            spawning.add_done_callback(lambda done: self._unwanted(kind, done))
            raise

    async def _spawn(
        self, kind: WorkerKind, slot: int, callbacks: WorkerCallbacks, environment: Mapping[str, str]
    ) -> WorkerProcess:
        zygote = await asyncio.shield(self._zygote(kind.python))
        self._counts[kind.python] = self._counts.get(kind.python, 0) + 1
        try:
            lower_priority(zygote.pid, *self.priority)
            sys_path = (kind.modules,) if kind.modules else ()
            return await zygote.start_worker(slot, callbacks, kind.cpu, sys_path, environment=environment)
        except BaseException:
            self.ended(kind)
            raise

    def _unwanted(self, kind: WorkerKind, done: asyncio.Task[WorkerProcess]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().stop()
            self.ended(kind)

    def zygote_pids(self) -> list[int]:
        """Of the zygotes that live now."""
        done = (
            task for task in self._zygotes.values() if task.done() and not task.cancelled() and not task.exception()
        )
        return [pid for task in done if (pid := task.result().pid)]

    def ended(self, kind: WorkerKind) -> None:
        """A worker of this kind is gone, or on its way."""
        self._counts[kind.python] = max(0, self._counts.get(kind.python, 0) - 1)
        self._used_s[kind.python] = time.monotonic()

    async def sweep(self, keep: WorkerKind) -> None:
        """End zygotes that nobody has needed for a while; never the one of `keep`."""
        idle = [
            python
            for python, task in self._zygotes.items()
            if task.done() and not self._counts.get(python) and python != keep.python
        ]
        idle.sort(key=lambda python: self._used_s[python])
        now = time.monotonic()
        for at, python in enumerate(idle):
            if at < len(idle) - ZYGOTES_LIMIT or now - self._used_s[python] > IDLE_S:
                await self._end(python)

    async def close(self) -> None:
        for python in list(self._zygotes):
            await self._end(python)

    async def _end(self, python: str) -> None:
        task = self._zygotes.pop(python)
        self._used_s.pop(python, None)
        self._counts.pop(python, None)
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            zygote = await task
            await zygote.stop()
