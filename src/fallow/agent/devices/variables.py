"""Environment variables that show a worker its devices alone, and make libraries keep to a part of one."""

from __future__ import annotations

from collections.abc import Sequence

from fallow.core.gpu_memory import cap_bytes
from fallow.model.job import GpuSpec
from fallow.model.node import Device

CUDA = "CUDA_VISIBLE_DEVICES"
CUDA_ORDER = "CUDA_DEVICE_ORDER"
ROCM = "ROCR_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
SHARE = "FALLOW_GPU_SHARE"
"""Read by worker.gpu_share: PyTorch takes its limit by a call alone."""
LIBRARY_SHARE = 0.9
"""Libraries count what they allocate, not what their context takes: they get so much of the part."""


def device_variables(devices: Sequence[Device], numbers: Sequence[int], need: GpuSpec) -> dict[str, str]:
    """For a worker that was given the devices with these numbers (none of them: ()). {} where there are none at all."""
    found: dict[str, str] = {}
    if any(device.vendor == "nvidia" for device in devices):
        found[CUDA] = ",".join(_names(devices, numbers, "nvidia"))
        found[CUDA_ORDER] = "PCI_BUS_ID"
    if any(device.vendor == "amd" for device in devices):
        names = _names(devices, numbers, "amd")
        # An empty list would show all; a place that does not exist ends the list. HIP counts what ROCm shows.
        found[ROCM] = ",".join(names) or "-1"
        found[HIP] = ",".join(str(at) for at in range(len(names))) or "-1"
    if numbers and need.share < 1:
        found |= _part(devices[numbers[0]], need)
    return found


def _names(devices: Sequence[Device], numbers: Sequence[int], vendor: str) -> list[str]:
    places = [number for number, device in enumerate(devices) if device.vendor == vendor]
    return [devices[number].uuid or str(places.index(number)) for number in numbers if number in places]


def _part(device: Device, need: GpuSpec) -> dict[str, str]:
    share = need.share * LIBRARY_SHARE
    return {
        SHARE: f"{share:.4f}",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.4f}",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        # These two are heeded where the owner runs NVIDIA's MPS; elsewhere they do nothing.
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={cap_bytes(device, need) >> 20}M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{max(1, round(need.share * 100))}",
    }
