"""The watch of a real node: its GPUs, its slots, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fallow.agent.owner.watch import Watch
from fallow.model.lending import LendingSettings

if TYPE_CHECKING:
    from fallow.agent.node import Node


def watch_of(node: Node, settings: LendingSettings, price: Callable[[], float | None]) -> Watch:
    """GPUs whose driver does not tell who uses them follow what is decided for the CPU."""
    if not node.spec.devices:
        return Watch(node, settings, price=price)
    from fallow.agent.devices.nvml import gpu_use

    def slot_gpus() -> dict[int, set[str]]:
        return {
            slot.number: {uuid for lane in slot.lanes.values() for uuid in node.gpu_uuids(lane)} for slot in node.slots
        }

    told = [device.uuid for device in node.spec.devices if device.vendor == "nvidia" and device.uuid]
    return Watch(
        node,
        settings,
        gpu_uuids=told,
        gpu_use=gpu_use,
        slot_gpus=slot_gpus,
        withhold=node.withhold,
        price=price,
    )
