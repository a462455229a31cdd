"""The GPUs of this machine, of every make, and the device nodes that a sandbox needs for some of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from fallow.agent.devices.amd import amd_devices, render_nodes
from fallow.agent.devices.nvml import Nvml, nvml
from fallow.model.lending import GpuSettings
from fallow.model.node import Device

NVIDIA_ALWAYS = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


def gpu_devices(settings: GpuSettings | None = None) -> tuple[Device, ...]:
    """All that can be had at once: NVIDIA's and AMD's. settings: what of it the owner lends."""
    return lent((*nvml().devices(), *amd_devices()), settings or GpuSettings())


async def late_devices(settings: GpuSettings, memory_bytes: int) -> tuple[Device, ...]:
    """Those that are lent and take seconds to be found: Apple's."""
    if sys.platform != "darwin":
        return ()
    from fallow.agent.devices.apple import apple_devices

    return lent(await asyncio.to_thread(apple_devices, memory_bytes), settings)


def lent(devices: Sequence[Device], settings: GpuSettings) -> tuple[Device, ...]:
    """Those that the owner lends."""
    if not settings.lend:
        return ()
    return tuple(
        device
        for device in devices
        if not settings.models or any(model.lower() in device.model.lower() for model in settings.models)
    )


def device_words() -> str:
    """What is wrong with this machine's GPU drivers; '' where nothing is."""
    return nvml().words


def device_nodes(uuids: Sequence[str], driver: Nvml | None = None) -> tuple[str, ...]:
    """Device nodes for exactly these GPUs, and those that all of their make share. () for none; a GPU whose node cannot
    be told gets none, so that no other is shown in its place."""
    driver = driver or nvml()
    nodes = []
    for uuid in uuids:
        minor = driver.minor(uuid)
        if minor is not None:
            nodes.append(f"/dev/nvidia{minor}")
    if nodes:
        nodes += [node for node in NVIDIA_ALWAYS if os.path.exists(node)]
    known = [device.uuid for device in amd_devices()]
    nodes += render_nodes(tuple(known.index(uuid) for uuid in uuids if uuid and uuid in known))
    return tuple(nodes)
