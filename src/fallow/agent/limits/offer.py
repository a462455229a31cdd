"""What a machine offers of what it has, by its owner's settings."""

from __future__ import annotations

import msgspec

from fallow.agent.devices.found import lent
from fallow.core.duty import slots_of_share
from fallow.model.lending import LendingSettings
from fallow.model.node import NodeSpec


def lent_slots(settings: LendingSettings, cpu_count: int, asked: int = 0) -> int:
    """Tasks at a time: `asked` on the command line, else the settings' number, else one for each processor; fewer
    where the lent share of the processors is not enough for them."""
    return slots_of_share(settings.share.cpu_share, cpu_count, asked or settings.share.slots or cpu_count)


def lent_spec(spec: NodeSpec, settings: LendingSettings) -> NodeSpec:
    """The node as it offers itself."""
    share = settings.share
    memory = min(spec.memory_bytes, share.memory_bytes) if share.memory_bytes else spec.memory_bytes
    disk = min(spec.disk_free_bytes, share.disk_bytes) if share.disk_bytes else spec.disk_free_bytes
    return msgspec.structs.replace(
        spec, memory_bytes=memory, disk_free_bytes=disk, devices=lent(spec.devices, settings.gpu)
    )
