"""The node's devices at work: who gets which, and that one is clean before the next has it.

Decisions are core.gpus' and core.gpu_memory's. A device that its last tenant has left is closed until its memory is
free again (and overwritten, where the next may be a stranger); if it does not come free it is taken out, with words,
and looked at again from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from fallow.agent.devices.variables import device_variables
from fallow.core.gpu_memory import Use, over_cap, what_is_left
from fallow.core.gpus import GpuBook, room
from fallow.model.job import GpuSpec
from fallow.model.node import Device

if TYPE_CHECKING:
    from fallow.agent.devices.nvml import Nvml
    from fallow.agent.lane import Lane

log = logging.getLogger("fallow.agent")

CLEAR_WAIT_S = 15.0
"""A worker that was told to end may take some seconds; a device that is not free by then is taken out."""
LOOK_EVERY_S = 0.05
AGAIN_S = 30.0
"""A device that was taken out is looked at again so often."""


class Tenant(Struct, frozen=True):
    """A worker that has a part of a device. `kill`: as WorkerProcess.kill."""

    owner: Hashable
    pid: int
    kill: Callable[[str, str], None]


def tenants_of(lanes: Iterable[Lane]) -> list[Tenant]:
    """Workers among these lanes that have a part of a device."""
    return [
        Tenant(seat, seat.process.pid, seat.process.kill)
        for lane in lanes
        if (seat := lane.seat) is not None
        and seat.process is not None
        and seat.kind.gpu.count
        and seat.kind.gpu.share < 1
    ]


class Gpus:
    """The devices of this node, by number in the order of its spec. `shares`: tasks may have parts of one (own pools);
    without it a device is one tenant's, and its memory is overwritten before the next."""

    def __init__(
        self,
        devices: Sequence[Device],
        shares: bool = True,
        driver: Callable[[], Nvml] | None = None,
        wait_s: float = CLEAR_WAIT_S,
    ) -> None:
        self._shares = shares
        self._driver = driver or _system_driver
        self._wait_s = wait_s
        self._devices = [self._checked(device) for device in devices]
        self._book = GpuBook(devices, shares)
        for number, device in enumerate(self._devices):
            if device.fault:
                self._book.close(number)
        self._needs: dict[Hashable, GpuSpec] = {}
        self._before: dict[int, Use] = {}
        self._cleaning: dict[int, asyncio.Task[None]] = {}
        self._withheld: frozenset[int] = frozenset()
        self._guarding: asyncio.Task[None] | None = None

    def _checked(self, device: Device) -> Device:
        if self._shares or device.vendor == "nvidia" or device.fault:
            return device
        return replace(device, fault="its memory cannot be overwritten between the jobs of strangers")

    @property
    def devices(self) -> tuple[Device, ...]:
        """As they are now, with what is wrong with them."""
        return tuple(self._devices)

    def add(self, devices: Sequence[Device]) -> None:
        """Further ones that were found late, numbered on."""
        first = len(self._devices)
        self._devices += [self._checked(device) for device in devices]
        self._book.add(devices)
        for number in range(first, len(self._devices)):
            if self._devices[number].fault:
                self._book.close(number)

    def set_speeds(self, speeds: dict[str, float]) -> None:
        """Note what was measured, in Gflop/s by uuid."""
        self._devices = [replace(d, speed=speeds[d.uuid]) if d.uuid in speeds else d for d in self._devices]

    @property
    def withheld(self) -> tuple[int, ...]:
        """Numbers of the devices that the machine's owner uses."""
        return tuple(sorted(self._withheld))

    def withhold(self, uuids: frozenset[str]) -> bool:
        """Give these devices to nobody, until others are named: the machine's owner uses them. Says whether they are
        others than before."""
        before = self._withheld
        self._withheld = frozenset(at for at, device in enumerate(self._devices) if device.uuid in uuids)
        for number in self._withheld - before:
            self._book.close(number)
        for number in before - self._withheld:
            if number not in self._cleaning and not self._devices[number].fault:
                self._book.open(number)
        return before != self._withheld

    def lacks(self, need: GpuSpec) -> bool:
        """Whether the owner uses so many devices that the rest could not serve this, whoever gave up theirs."""
        left = [device for number, device in enumerate(self._devices) if number not in self._withheld]
        return bool(need.count and self._withheld) and not room(left, need, self._shares)

    # ------------------------------------------------------------ giving

    def take(self, owner: Hashable, need: GpuSpec) -> tuple[int, ...] | None:
        """Numbers of the devices that the owner gets; None where too few are free now."""
        known = self._book.held(owner)
        if known:
            return known
        numbers = self._book.take(owner, need)
        if numbers is None:
            return None
        self._needs[owner] = need
        for number in numbers:
            if number not in self._before and (use := self._use(number)) is not None:
                self._before[number] = use
        return numbers

    def release(self, owner: Hashable) -> None:
        """The owner's worker has ended, or was told to."""
        self._needs.pop(owner, None)
        for number in self._book.release(owner):
            if self._book.owners(number) or (number not in self._before and self._shares):
                continue
            self._book.close(number)
            self._cleaning[number] = asyncio.ensure_future(self._clean(number))

    def environment(self, numbers: Sequence[int], need: GpuSpec | None = None) -> dict[str, str]:
        """Variables that show a worker these devices alone; none at all where the node has none."""
        return device_variables(self._devices, numbers, need or GpuSpec())

    def uuids(self, owner: Hashable) -> tuple[str, ...]:
        """Of the devices that the owner has, for device_nodes."""
        return tuple(self._devices[number].uuid for number in self._book.held(owner))

    # ------------------------------------------------------------ cleaning

    def _use(self, number: int) -> Use | None:
        """The device's memory now; None where there is no driver to ask."""
        uuid = self._devices[number].uuid
        driver = self._driver()
        if not driver.works or driver.minor(uuid) is None:
            return None
        own = _own_pids()
        processes = driver.processes(uuid) or ()
        return Use(
            free_bytes=driver.reading(uuid).memory_free_bytes,
            foreign_bytes=sum(process.memory_bytes or 0 for process in processes if process.pid not in own),
            own_pids=tuple(process.pid for process in processes if process.pid in own),
        )

    async def _clean(self, number: int) -> None:
        """Give the device back to the book once it is clean; take it out where it is not."""
        while True:
            words = await self._wait_free(number)
            if not words and not self._shares:
                words = await self._wipe(number)
            device = self._devices[number]
            if words != device.fault:
                self._devices[number] = replace(device, fault=words)
                if words:
                    log.warning("%s (GPU %d) is taken out: %s", device.model, number, words)
                else:
                    log.warning("%s (GPU %d) is back: its memory is free", device.model, number)
            if not words:
                break
            await asyncio.sleep(AGAIN_S)
        del self._cleaning[number]
        self._before.pop(number, None)
        if number not in self._withheld:
            self._book.open(number)

    async def _wait_free(self, number: int) -> str:
        before = self._before.get(number)
        if before is None:
            return "its driver does not tell how much memory is free"
        deadline = time.monotonic() + self._wait_s
        while True:
            now = await asyncio.to_thread(self._use, number)
            words = "its driver does not answer any more" if now is None else what_is_left(before, now)
            if not words or time.monotonic() >= deadline:
                return words
            await asyncio.sleep(LOOK_EVERY_S)

    async def _wipe(self, number: int) -> str:
        from fallow.agent.devices.wipe import wipe

        return await wipe(self._devices[number].uuid)

    async def close(self) -> None:
        tasks = [*self._cleaning.values(), *([self._guarding] if self._guarding is not None else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    # ------------------------------------------------------------ parts

    def guard(self, tenants: Sequence[Tenant]) -> None:
        """Look, in the background, whether these keep to their parts; who does not is killed with 'memory'."""
        if tenants and (self._guarding is None or self._guarding.done()) and self._driver().works:
            self._guarding = asyncio.ensure_future(self._guard(tenants))

    async def _guard(self, tenants: Sequence[Tenant]) -> None:
        try:
            used = await asyncio.to_thread(self._used_by, tenants)
        except Exception:
            log.exception("the memory of GPUs could not be watched")
            return
        for tenant, number, size in used:
            need = self._needs.get(tenant.owner)
            if need is not None and (words := over_cap(self._devices[number], need, size)):
                tenant.kill("memory", words)

    def _used_by(self, tenants: Sequence[Tenant]) -> list[tuple[Tenant, int, int]]:
        """(tenant, device, bytes that its processes have of it)."""
        found = []
        listed: dict[int, dict[int, int]] = {}
        for tenant in tenants:
            pids = _tree(tenant.pid)
            for number in self._book.held(tenant.owner):
                if number not in listed:
                    processes = self._driver().processes(self._devices[number].uuid) or ()
                    listed[number] = {process.pid: process.memory_bytes or 0 for process in processes}
                found.append((tenant, number, sum(listed[number].get(pid, 0) for pid in pids)))
        return found


def _system_driver() -> Nvml:
    from fallow.agent.devices.nvml import nvml

    return nvml()


def _own_pids() -> frozenset[int]:
    """Processes that the agent has started, and theirs."""
    return frozenset(_tree(os.getpid())) - {os.getpid()}


def _tree(pid: int) -> list[int]:
    import psutil

    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]
