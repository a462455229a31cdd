"""Lets workers run for a part of each second only: stopped where they are, and continued."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from fallow.agent.worker_api import WorkerProcess
from fallow.core.duty import PERIOD_S, spells

log = logging.getLogger("fallow.agent")


class Duties:
    """`workers` gives every worker that has an order, with the devices that it uses ('cpu', a GPU's uuid). Nothing
    runs here while every share is 1."""

    def __init__(self, workers: Callable[[], Iterable[tuple[WorkerProcess, tuple[str, ...]]]]) -> None:
        self._workers = workers
        self._shares: dict[str, float] = {}
        self._loop: asyncio.Task[None] | None = None
        self._held: set[WorkerProcess] = set()

    @property
    def shares(self) -> dict[str, float]:
        """Of each second, by device, where below 1."""
        return dict(self._shares)

    def share_of(self, device: str) -> float:
        return self._shares.get(device, 1.0)

    def set(self, device: str, share: float) -> None:
        """From the next second on."""
        if share >= 1.0:
            self._shares.pop(device, None)
        else:
            self._shares[device] = max(0.0, share)
        if self._shares and self._loop is None:
            self._loop = asyncio.ensure_future(self._run())

    def release(self) -> None:
        """Let everything go on at once (what is to be ended must be able to hear of it)."""
        for worker in self._held:
            worker.hold(False)
        self._held.clear()

    async def close(self) -> None:
        self._shares.clear()
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        self.release()

    async def _run(self) -> None:
        try:
            while self._shares:
                await self._period()
        finally:
            self._loop = None
            self.release()

    async def _period(self) -> None:
        """One second: all go on together, and each stops when its spell is over."""
        ends: list[tuple[float, WorkerProcess]] = []
        busy = set()
        for worker, devices in self._workers():
            busy.add(worker)
            work_s, rest_s = spells(min((self.share_of(device) for device in devices), default=1.0))
            if work_s > 0:
                self._hold(worker, False)
            if rest_s > 0:
                ends.append((work_s, worker))
        for worker in self._held - busy:
            # It has lost its order, or is another job's now.
            self._hold(worker, False)
        passed_s = 0.0
        for work_s, worker in sorted(ends, key=lambda end: end[0]):
            if work_s > passed_s:
                await asyncio.sleep(work_s - passed_s)
                passed_s = work_s
            if worker.running and self._shares:
                self._hold(worker, True)
        await asyncio.sleep(max(0.0, PERIOD_S - passed_s))

    def _hold(self, worker: WorkerProcess, on: bool) -> None:
        if on:
            self._held.add(worker)
        else:
            self._held.discard(worker)
        worker.hold(on)
