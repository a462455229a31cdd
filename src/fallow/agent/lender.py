"""The owner's side of an agent: what the settings allow, what the owner orders, and what there is to tell.

Made for every agent that lends a machine (`fallow join`, the local node of `fallow up`), never for embedded pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fallow.agent.caches import Caches
from fallow.agent.control import (
    ClearCaches,
    ControlServer,
    Drain,
    Pause,
    ProbeSandbox,
    Question,
    Reload,
    Resume,
    Status,
)
from fallow.agent.earnings import WorkBook
from fallow.agent.limits.bandwidth import Throttle
from fallow.agent.limits.disk import Disk
from fallow.agent.limits.keeper import GpuState, Keeper
from fallow.agent.limits.offer import lent_spec
from fallow.agent.limits.price import read_price
from fallow.agent.limits.writers import Writers
from fallow.agent.report import cache_report, state_now, status_report
from fallow.agent.settings import load_settings
from fallow.core.presence import LEAST_JITTER
from fallow.core.quantities import write_time
from fallow.model.errors import SettingError
from fallow.model.lending import LendingSettings, PriceSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from fallow.agent.node import Node
    from fallow.agent.owner.watch import Watch

log = logging.getLogger("fallow.agent")

TICK_S = 1.0
KEEP_EVERY_S = 60.0
BY_WORD = "by your word"
"""So the watch begins the reason of a pause that the owner ordered."""
RESUME_LOOKS = 40
MANUAL = "by `fallow node pause`"


class Lender:
    """`folder`: the agent's own; `settings_file`: of all agents of its home. `settings` are those it started with, and
    those without a file. `watches`: the machine is its owner's first; False: a pool's own machine, on which nothing but
    the owner's word stops work as long as there is no settings file."""

    def __init__(
        self, node: Node, folder: Path, settings_file: Path, settings: LendingSettings, watches: bool = True
    ) -> None:
        self.node = node
        self.folder = folder
        self.settings_file = settings_file
        self.settings = self._without_file = settings
        self.settings_problem = ""
        """Why the file as it is now is not in force; '': it is."""
        self.settings_unix_s = time.time()
        self.started_unix_s = time.time()
        self.paused_until_s: float | None = None
        """On the monotonic clock; infinite: until `resume`. None: the owner has not paused."""
        self.is_drained = False
        self.state_unix_s = time.time()
        self._state = ""
        self.job_since: dict[str, float] = {}
        self.work = WorkBook(folder)
        confinement = node.workers.confinement
        writers = confinement.writers if confinement is not None else Writers()
        self.caches = Caches(folder, node.jobs.paths_in_use, lambda: writers.unseen_bytes)
        self.throttle = Throttle()
        self.keeper = Keeper(node, gpu_states, PowerLimits().set)
        self._control = ControlServer(folder, self._answer)
        self.watch = self._make_watch() if watches else None
        self.price_per_kwh: float | None = None
        self.price_problem = ""
        self._pricing: asyncio.Task[None] | None = None
        self._repriced = asyncio.Event()
        """The settings have changed."""
        self._keeping: asyncio.Task[None] | None = None
        self._looked_s = self._kept_s = time.monotonic()
        self._is_kept = False
        """Nothing has come since what is kept was looked after."""
        self.disk = Disk(folder, self.caches, writers=writers)
        writers.room = lambda most: self.disk.room(most, self.settings.share.disk_bytes)
        self._tasks_seen = 0
        self._rested: tuple[LendingSettings, str] | None = None
        """Settings and pause that were noted since the node came to rest; None: it works."""
        self._apply(settings)
        node.offer(lent_spec(node.spec, settings))
        node.blobs.make_room = self.make_room

    async def start(self) -> None:
        """Raises SettingError where the owner could not be heard."""
        await self._control.start()
        with contextlib.suppress(NotImplementedError, RuntimeError, AttributeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hung_up)
        self.node.pulse.add(self._pulse)
        self.node.on_work.append(self._work_begins)
        self._pricing = asyncio.ensure_future(self._read_prices())
        if self.watch is not None:
            self.watch.start()

    async def close(self) -> None:
        if self.watch is not None:
            self.watch.close()
        self.node.pulse.remove(self._pulse)
        if self._work_begins in self.node.on_work:
            self.node.on_work.remove(self._work_begins)
        for task in (self._keeping, self._pricing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self.keeper.close()
        await self._control.close()
        with contextlib.suppress(OSError):
            self.work.save()

    # ------------------------------------------------------------ settings

    def reload(self) -> None:
        """Take in the file as it is now. Raises SettingError, and keeps what was in force, where it is wrong."""
        try:
            settings = load_settings(self.settings_file) if self.settings_file.exists() else self._without_file
        except SettingError as error:
            self.settings_problem = str(error)
            log.warning("the settings stay as they were: %s", error)
            raise
        self.settings_problem = ""
        self.settings_unix_s = time.time()
        self._apply(settings)
        if self.watch is None and self.settings_file.exists():
            self.watch = self._make_watch()
            self.watch.start()
        log.info("the settings in %s are in force", self.settings_file)

    def _hung_up(self) -> None:
        with contextlib.suppress(SettingError):
            self.reload()

    def _apply(self, settings: LendingSettings) -> None:
        self.settings = settings
        self._is_kept = False
        self._repriced.set()
        self.throttle.set_rates(settings.share.up_bytes_per_s, settings.share.down_bytes_per_s)
        self.node.set_pace(self.throttle)
        self.node.workers.priority = (settings.share.nice, settings.share.idle_io)
        if self.watch is not None:
            self.watch.set_settings(settings)

    def _make_watch(self) -> Watch:
        from fallow.agent.owner.of_node import watch_of

        return watch_of(self.node, self.settings, lambda: self.price_per_kwh)

    # ------------------------------------------------------------ orders

    async def _answer(self, question: Question) -> dict[str, Any]:
        match question:
            case Status():
                if self.watch is not None:
                    await self.watch.look_again()
                return status_report(self)
            case Pause(for_s=for_s, gpu=None):
                self.pause(for_s)
            case Pause(for_s=for_s, gpu=int(gpu)):
                uuid = self._pause_gpu(gpu, for_s)
                await self._until_looked(lambda: uuid in self._paused_gpus())
            case Resume():
                self.resume()
                await self._until_looked(
                    lambda: (
                        not self.node.paused.startswith(BY_WORD)
                        and not any(why.startswith(BY_WORD) for why in self._paused_gpus().values())
                    )
                )
            case Drain():
                self.drain()
            case Reload():
                self.reload()
            case ClearCaches(older_s=older_s):
                return await self._clear(older_s)
            case ProbeSandbox():
                return await self._probe_sandbox()
            case _:
                usage = await asyncio.to_thread(self.caches.look, time.time())
                return cache_report(usage, self.settings.share.disk_bytes)
        return status_report(self)

    def pause(self, for_s: float = 0.0) -> None:
        """Stop what runs and take no more; for so many seconds, 0: until `resume`."""
        self.paused_until_s = time.monotonic() + for_s if for_s else float("inf")
        self.note_state()
        words = f"for {write_time(round(for_s))}" if for_s else ""
        self.keeper.duties.release()
        if self.watch is not None:
            self.watch.pause(for_s or math.inf)
        else:
            self.node.preempt(None, " ".join(f"{words} {MANUAL}".split()), self.settings.owner.grace_s)

    def resume(self) -> None:
        """End a pause and a drain of the owner's."""
        was_paused = self.paused_until_s is not None
        self.paused_until_s = None
        if self.is_drained:
            self.is_drained = False
            self.node.drain_by_owner(False)
        if self.watch is not None:
            self.watch.resume()
        elif was_paused:
            self.node.allow(None)
        self.note_state()

    def _pause_gpu(self, number: int, for_s: float) -> str:
        """Returns its uuid. Raises SettingError in words where it cannot be paused alone."""
        devices = self.node.spec.devices
        if not 0 <= number < len(devices):
            here = f"0 to {len(devices) - 1}" if devices else "none"
            raise SettingError(f"there is no GPU {number} here (there is {here}); `fallow node status` lists them.")
        if self.watch is None or devices[number].uuid not in self.watch.status()["devices"]:
            raise SettingError(
                f"GPU {number} ({devices[number].model}) cannot be paused alone: nothing here looks at who uses it. "
                "`fallow node pause` pauses the machine."
            )
        self.watch.pause_gpu(devices[number].uuid, for_s or math.inf)
        return devices[number].uuid

    def _paused_gpus(self) -> dict[str, str]:
        """Reasons by uuid, of GPUs that the owner keeps."""
        if self.watch is None:
            return {}
        from fallow.core.owner_policy import CPU

        found = self.watch.status()["devices"]
        return {name: str(one["reason"]) for name, one in found.items() if one["paused"] and name != CPU}

    async def _until_looked(self, holds: Callable[[], bool]) -> None:
        """The watch looks again within moments; what it finds is what the owner wants to hear."""
        for _ in range(RESUME_LOOKS):
            if holds():
                return
            await asyncio.sleep(0.05)

    def drain(self) -> None:
        """Finish what runs, and take no more until `resume`."""
        self.is_drained = True
        self.node.drain_by_owner(True)
        self.note_state()

    def note_state(self) -> tuple[str, str]:
        """The state and its reason now, with the time since when it is kept."""
        state, reason = state_now(self)
        if state != self._state:
            self._state = state
            self.state_unix_s = time.time()
        return state, reason

    async def _clear(self, older_s: float) -> dict[str, Any]:
        removed, left = await asyncio.to_thread(self.caches.clear, older_s, time.time())
        self.node.jobs.forget_missing()
        usage = await asyncio.to_thread(self.caches.look, time.time())
        report = cache_report(usage, self.settings.share.disk_bytes)
        freed = sum(one.size_bytes for one in removed)
        return {**report, "removed": len(removed), "freed_bytes": freed, "in_use": len(left)}

    async def _probe_sandbox(self) -> dict[str, Any]:
        from fallow.agent.report import probe_report

        return await asyncio.to_thread(probe_report, self.settings.sandbox)

    async def make_room(self, size: int) -> None:
        """Free so many bytes of the lent disk. Raises PoolRefused in words where that cannot be had."""
        await self.disk.make_room(size, self.settings.share.disk_bytes)
        self.node.jobs.forget_missing()

    # ------------------------------------------------------------ life

    async def _read_prices(self) -> None:
        """The price of electricity, every now and then; what cannot be read is unknown, which counts as too high."""
        while True:
            price = self.settings.price
            if price.source:
                try:
                    self.price_per_kwh, self.price_problem = await read_price(price.source), ""
                except (SettingError, OSError) as error:
                    self.price_per_kwh, self.price_problem = None, str(error)
                    log.warning("the price of electricity is unknown: %s", error)
            else:
                self.price_per_kwh, self.price_problem = None, ""
            self._repriced.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(price.every_s if price.source else None):
                    await self._until_repriced(price)

    async def _until_repriced(self, price: PriceSettings) -> None:
        while self.settings.price == price:
            await self._repriced.wait()
            self._repriced.clear()

    def _work_begins(self) -> None:
        if self.watch is not None:
            self.watch.work_begins()

    def _pulse(self) -> float | None:
        if self.watch is not None:
            self.watch.check()
        now_s = time.monotonic()
        passed_s = now_s - self._looked_s
        if passed_s >= TICK_S * LEAST_JITTER:
            self._looked_s = now_s
            self._tick(now_s, min(5.0, passed_s))
        is_at_work = self.node.is_at_work
        self._is_kept = self._is_kept and not is_at_work
        is_due = not self._is_kept and now_s - self._kept_s >= KEEP_EVERY_S
        if is_due and (self._keeping is None or self._keeping.done()):
            self._kept_s, self._is_kept = now_s, True
            self._keeping = asyncio.ensure_future(self._keep())
        if is_at_work:
            return TICK_S
        return max(0.0, self.paused_until_s - now_s) if self.paused_until_s is not None else None

    async def _keep(self) -> None:
        """Caches within their limit, and what was worked on disk."""
        try:
            await asyncio.to_thread(self.caches.prune, self.settings.share.disk_bytes, time.time())
            self.node.jobs.forget_missing()
            await asyncio.to_thread(self.work.save)
        except Exception:
            log.exception("what is kept could not be looked after")

    def _tick(self, now_s: float, passed_s: float) -> None:
        if self.paused_until_s is not None and now_s >= self.paused_until_s:
            self.resume()
        at_rest = not self.node.is_at_work
        now = (self.settings, self.node.paused) if at_rest else None
        if now is not None and now == self._rested:
            return
        self._rested = now
        self.disk.hold(self.settings.share.disk_bytes)
        cpu_s = gpu_s = 0.0
        jobs: dict[str, float] = {}
        for slot in self.node.slots:
            for lane in slot.lanes.values():
                if lane.running is not None:
                    cpu_s += passed_s
                    gpu_s += passed_s * len(self.node.gpu_uuids(lane))
                    jobs[lane.running.job_id] = self.job_since.get(lane.running.job_id, time.time())
        self.job_since = jobs
        tasks, self._tasks_seen = self.node.tasks_done - self._tasks_seen, self.node.tasks_done
        self.work.add(cpu_s, gpu_s, tasks)
        self.note_state()
        self.keeper.tick(self.settings)


def gpu_states() -> dict[str, GpuState]:
    """By uuid, as the driver tells."""
    from fallow.agent.devices.nvml import nvml

    return {uuid: GpuState(one.power_w, one.temperature_c) for uuid, one in nvml().readings().items()}


class PowerLimits:
    """Power limits that drivers hold by themselves, where they let this user; what was in force before comes back."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def set(self, uuid: str, power_w: float) -> bool:
        """0: as it was before. Says whether the driver holds at most this much now."""
        from fallow.agent.devices.nvml import nvml

        driver = nvml()
        if not power_w:
            before = self._before.pop(uuid, 0.0)
            return bool(before) and not driver.set_power_limit(uuid, before)
        before_w = driver.reading(uuid).power_limit_w
        if before_w is None or driver.set_power_limit(uuid, power_w):
            return False
        self._before.setdefault(uuid, before_w)
        now_w = driver.reading(uuid).power_limit_w
        # A driver does not go below what its card needs: then the work is paused for parts of each second as well.
        return now_w is not None and now_w <= power_w + 1.0
