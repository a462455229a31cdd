"""Which worker has which GPU: a device belongs to one worker at a time, and a worker sees no other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fallow.model.job import GpuSpec
from fallow.model.node import Device

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"


def fits(device: Device, need: GpuSpec) -> bool:
    """Say whether the device is of a kind that the job accepts."""
    return device.memory_bytes >= need.min_memory_bytes and (
        not need.models or any(model.lower() in device.model.lower() for model in need.models)
    )


class Gpus:
    """The devices of this node, in the order in which the driver counts them."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = tuple(devices)
        self._taken: dict[Hashable, tuple[int, ...]] = {}

    def take(self, owner: Hashable, need: GpuSpec) -> tuple[int, ...] | None:
        """Numbers of as many free devices as are needed, the smallest that do; None where there are too few."""
        if owner in self._taken:
            return self._taken[owner]
        used = {number for numbers in self._taken.values() for number in numbers}
        free = [n for n, device in enumerate(self._devices) if n not in used and fits(device, need)]
        if len(free) < need.count:
            return None
        free.sort(key=lambda number: (self._devices[number].memory_bytes, number))
        self._taken[owner] = tuple(sorted(free[: need.count]))
        return self._taken[owner]

    def release(self, owner: Hashable) -> None:
        self._taken.pop(owner, None)

    def uuids_of(self, owner: Hashable) -> tuple[str, ...]:
        """The devices that the owner has."""
        return tuple(self._devices[number].uuid or str(number) for number in self._taken.get(owner, ()))

    def environment(self, numbers: Sequence[int]) -> dict[str, str]:
        """Variables that show a worker these devices alone; none at all where the node has none."""
        if not self._devices:
            return {}
        names = [self._devices[number].uuid or str(number) for number in numbers]
        return {VISIBLE: ",".join(names), ORDER: "PCI_BUS_ID"}
