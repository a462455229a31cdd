"""Where workers come from: one zygote for each environment, which forks warm workers within milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from fallow.agent.limits.priority import lower_priority
from fallow.agent.worker_api import WorkerCallbacks, WorkerProcess
from fallow.model.job import GpuSpec

if TYPE_CHECKING:
    from fallow.agent.confined import Confinement
    from fallow.agent.spares import Spares
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
    tenant: str = ""
    """The job whose sandbox it lives in: what one customer's code has touched runs nothing of another's. '': plain."""
    network: bool = False
    """Public addresses, from inside a sandbox."""


_Key = tuple[str, str, tuple[str, ...]]
"""What tells zygotes apart: interpreter, job, and the devices that a sandbox was given."""


def _key(kind: WorkerKind, devices: tuple[str, ...]) -> _Key:
    return kind.python, kind.tenant, devices if kind.tenant else ()


def own_kind() -> WorkerKind:
    """Workers in the agent's own interpreter, for jobs without requirements."""
    return WorkerKind(sys.executable)


class Workers:
    """Starts workers, and the zygotes that they need. `scratch`: a folder for this run of the agent. `confinement`:
    each job in a sandbox of its own; None: plain processes, on a pool of one's own."""

    def __init__(self, scratch: Path, confinement: Confinement | None = None) -> None:
        self._scratch = scratch
        self.confinement = confinement
        self._spares: Spares | None = None
        self._zygotes: dict[_Key, asyncio.Task[Zygote]] = {}
        self._used_s: dict[_Key, float] = {}
        self._counts: dict[WorkerKind, int] = {}
        self._serial = 0
        self.priority = (0, False)
        """Niceness of zygotes and workers, and whether they read and write only when nobody else does."""
        self._ending: set[asyncio.Task[None]] = set()

    def warm(self, kind: WorkerKind) -> None:
        """Start the zygote of this kind now."""
        if self.confinement is not None:
            self._reserve().keep(kind.python)
        else:
            self._zygote(kind, ())

    def _reserve(self) -> Spares:
        if self._spares is None:
            from fallow.agent.spares import Spares

            self._spares = Spares(lambda python: self._begin(WorkerKind(python), ()), self._end_later)
        return self._spares

    def _end_later(self, task: asyncio.Task[Zygote]) -> None:
        ending = asyncio.ensure_future(_stop(task))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _begin(self, kind: WorkerKind, devices: tuple[str, ...]) -> asyncio.Task[Zygote]:
        task = asyncio.ensure_future(self._start_zygote(kind, devices))
        # A failure is told to whoever wants a worker; nobody may want one.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _zygote(self, kind: WorkerKind, devices: tuple[str, ...]) -> asyncio.Task[Zygote]:
        key = _key(kind, devices)
        task = self._zygotes.get(key)
        if task is not None and task.done() and (task.cancelled() or task.exception() is not None):
            task = None
        if task is None:
            if self.confinement is not None and not kind.network and not kind.gpu.count:
                task = self._reserve().take(kind.python)
            task = task or self._begin(kind, devices)
            self._zygotes[key] = task
        self._used_s[key] = time.monotonic()
        return task

    async def _start_zygote(self, kind: WorkerKind, devices: tuple[str, ...]) -> Zygote:
        from fallow.agent.zygote import start_zygote

        self._serial += 1
        scratch = self._scratch / f"zygote-{self._serial}"
        nodes: tuple[str, ...] = ()
        if devices and self.confinement is not None:
            from fallow.agent.devices.found import device_nodes

            nodes = await asyncio.to_thread(device_nodes, devices)
        return await start_zygote(kind.python, (), scratch, 1, self.confinement, kind.network, nodes)

    async def start(
        self,
        kind: WorkerKind,
        slot: int,
        callbacks: WorkerCallbacks,
        environment: Mapping[str, str],
        gpus: tuple[str, ...] = (),
    ) -> WorkerProcess:
        """A warm worker, with these variables. Raises EnvironmentFailed or OSError when it cannot be had. Whoever gets
        one says `ended`. `gpus`: by uuid; a sandbox shows these and no other."""
        spawning = asyncio.ensure_future(self._spawn(kind, slot, callbacks, environment, gpus))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # The zygote may have forked it already: it must not live on without an owner.
            spawning.add_done_callback(lambda done: self._unwanted(kind, done))
            raise

    async def _spawn(
        self,
        kind: WorkerKind,
        slot: int,
        callbacks: WorkerCallbacks,
        environment: Mapping[str, str],
        gpus: tuple[str, ...],
    ) -> WorkerProcess:
        zygote = await asyncio.shield(self._zygote(kind, gpus))
        self._counts[kind] = self._counts.get(kind, 0) + 1
        try:
            lower_priority(zygote.pid, *self.priority)
            sys_path = (kind.modules,) if kind.modules else ()
            if zygote.confined is not None and kind.modules:
                name = f"modules-{os.path.basename(kind.modules)}"
                sys_path = (await asyncio.to_thread(zygote.confined.expose_folder, kind.modules, name),)
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

    def ended(self, kind: WorkerKind, gpus: tuple[str, ...] = ()) -> None:
        """A worker of this kind is gone, or on its way. `gpus`: what its sandbox shows, to be given to others now."""
        if kind.tenant and gpus and (task := self._zygotes.get(_key(kind, gpus))) is not None:
            # What the worker may have left running in there would reach the next tenant's devices.
            task.add_done_callback(_end_sandbox)
        self._counts[kind] = max(0, self._counts.get(kind, 0) - 1)
        if not self._counts[kind]:
            del self._counts[kind]
        now = time.monotonic()
        for key in self._zygotes:
            if key[:2] == _key(kind, ())[:2]:
                self._used_s[key] = now

    async def sweep(self, keep: WorkerKind | None) -> None:
        """End zygotes that nobody has needed for a while; never the one of `keep`."""
        kept = _key(keep, ()) if keep is not None else None
        used = {_key(kind, ())[:2] for kind in self._counts}
        idle = [key for key, task in self._zygotes.items() if task.done() and key[:2] not in used and key != kept]
        idle.sort(key=lambda key: self._used_s[key])
        now = time.monotonic()
        for at, key in enumerate(idle):
            if at < len(idle) - ZYGOTES_LIMIT or now - self._used_s[key] > IDLE_S:
                await self._end(key)
        if self._spares is not None:
            self._spares.sweep()

    def end_tenants(self, tenants: Container[str]) -> None:
        """End the sandboxes of all jobs but these, with what still runs in them."""
        for key in [key for key in self._zygotes if key[1] and key[1] not in tenants]:
            ending = asyncio.ensure_future(self._end(key))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        for key in list(self._zygotes):
            await self._end(key)
        for spare in self._spares.close() if self._spares is not None else ():
            await _stop(spare)
        if self._ending:
            await asyncio.wait(self._ending)

    async def _end(self, key: _Key) -> None:
        task = self._zygotes.pop(key, None)
        self._used_s.pop(key, None)
        if task is not None:
            await _stop(task)


def _end_sandbox(task: asyncio.Task[Zygote]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().end_sandbox()


async def _stop(task: asyncio.Task[Zygote]) -> None:
    if not task.done():
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        zygote = await task
        await zygote.stop()
