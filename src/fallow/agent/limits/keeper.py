"""Holds the limits that no sandbox can hold alone: processor share and memory of all workers together, GPU power and
temperature. Looked at once a second, and only while something runs under a limit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from fallow.agent.limits.duties import Duties
from fallow.agent.limits.meter import Meter, Use
from fallow.core.duty import of_amount, of_temperature
from fallow.core.quantities import write_size
from fallow.model.lending import LendingSettings

if TYPE_CHECKING:
    from fallow.agent.node import Node
    from fallow.agent.worker_api import WorkerProcess

log = logging.getLogger("fallow.agent")

CPU = "cpu"
CPU_EVERY_LOOKS = 3
"""The share for the processor changes so seldom, by the mean of the looks since."""


class GpuState(Struct, frozen=True):
    """A reading of one GPU; None: it cannot be read."""

    power_w: float | None = None
    temperature_c: float | None = None


class Keeper:
    """Of one node. `gpus` reads the GPUs by uuid; it is asked only where a limit for them is set. `set_power` has a
    GPU's driver hold a limit in watts (0: its own), and says whether it does."""

    def __init__(
        self, node: Node, gpus: Callable[[], dict[str, GpuState]], set_power: Callable[[str, float], bool]
    ) -> None:
        self._node = node
        self._gpus = gpus
        self._meter = Meter(node.spec.cpu_count)
        self._looks = 0
        self._cpu_seen: list[float | None] = []
        self._cards: dict[str, float] = {}
        """Shares of GPUs for power alone, and below for temperature alone: the smaller one counts."""
        self._cooling: dict[str, float] = {}
        self._held_by_driver: set[str] = set()
        """GPUs that hold the power limit themselves."""
        self._set_power = set_power
        self._power_w = 0.0
        self.duties = Duties(self._busy)
        self.use = Use()

    def tick(self, settings: LendingSettings) -> None:
        """One look; takes some milliseconds where a limit is set."""
        self._hold_cpu_and_memory(settings)
        self._hold_gpus(settings)

    async def close(self) -> None:
        await self.duties.close()
        self._have_drivers_hold(0.0)

    def _have_drivers_hold(self, power_w: float) -> None:
        """Where the driver lets this user; the others are held by duty."""
        self._power_w = power_w
        before = self._held_by_driver
        uuids = [device.uuid for device in self._node.spec.devices] if power_w else []
        self._held_by_driver = {uuid for uuid in uuids if self._set_power(uuid, power_w)}
        for uuid in before - self._held_by_driver:
            self._set_power(uuid, 0.0)

    def _workers(self) -> list[WorkerProcess]:
        found = (lane.process for slot in self._node.slots for lane in slot.lanes.values())
        return [process for process in found if process is not None]

    def _busy(self) -> list[tuple[WorkerProcess, tuple[str, ...]]]:
        busy = []
        for slot in self._node.slots:
            for lane in slot.lanes.values():
                process = lane.process
                if process is not None and process.running:
                    busy.append((process, (CPU, *self._node.gpu_uuids(lane))))
        return busy

    def _hold_cpu_and_memory(self, settings: LendingSettings) -> None:
        share = settings.share
        busy = [process for process, _ in self._busy()] if share.cpu_share or share.memory_bytes else []
        if not share.cpu_share:
            self.duties.set(CPU, 1.0)
        if not busy:
            self.use = Use()
            self._looks = 0
            self._meter.forget()
            return
        self._looks += 1
        self.use = self._meter.measure(self._node.workers.zygote_pids(), [process.pid for process in busy])
        if share.cpu_share and self._looks % CPU_EVERY_LOOKS == 0:
            # The first look after a change still sees work that began under the share before.
            self.duties.set(CPU, of_amount(self.duties.share_of(CPU), self._mean_cpu(), share.cpu_share))
            self._cpu_seen.clear()
        elif self._looks % CPU_EVERY_LOOKS > 1:
            self._cpu_seen.append(self.use.cpu_share)
        if share.memory_bytes and self.use.memory_bytes > share.memory_bytes:
            self._end_largest(busy, share.memory_bytes)

    def _mean_cpu(self) -> float | None:
        seen = [share for share in (*self._cpu_seen, self.use.cpu_share) if share is not None]
        return sum(seen) / len(seen) if seen else None

    def _end_largest(self, busy: list[WorkerProcess], limit_bytes: int) -> None:
        used = self.use.memory_by_worker
        victim = max(busy, key=lambda process: used.get(process.pid, 0))
        victim.kill(
            "memory",
            f"the tasks on this machine used {write_size(self.use.memory_bytes)} of memory together, its owner lends "
            f"{write_size(limit_bytes)}, and this worker used the most: {used.get(victim.pid, 0):,} bytes",
        )

    def _hold_gpus(self, settings: LendingSettings) -> None:
        limits = settings.gpu
        if limits.power_limit_w != self._power_w:
            self._have_drivers_hold(limits.power_limit_w)
        if not limits.power_limit_w and not limits.temperature_limit_c:
            for uuid in {*self._cards, *self._cooling}:
                self.duties.set(uuid, 1.0)
            self._cards.clear()
            self._cooling.clear()
            return
        in_use = {device for _, devices in self._busy() for device in devices if device != CPU}
        readings = self._gpus() if in_use else {}
        for uuid in in_use:
            reading = readings.get(uuid, GpuState())
            by_duty = 0.0 if uuid in self._held_by_driver else limits.power_limit_w
            # What is in force is the smaller of two: a share that did not bind must not be taken for its cause.
            shown = self.duties.share_of(uuid)
            self._cards[uuid] = of_amount(min(self._cards.get(uuid, 1.0), shown), reading.power_w, by_duty)
            self._cooling[uuid] = of_temperature(
                min(self._cooling.get(uuid, 1.0), shown), reading.temperature_c, limits.temperature_limit_c
            )
            self.duties.set(uuid, min(self._cards[uuid], self._cooling[uuid]))
