"""Whether a GPU's memory came back when its tenant left, and whether a tenant keeps to its part."""

from __future__ import annotations

from msgspec import Struct

from fallow.model.job import GpuSpec
from fallow.model.node import Device

TOLERANCE_BYTES = 256 << 20
"""The driver itself takes and gives back as much, and desktops draw."""
CAP_SLACK = 0.05
"""Contexts and libraries take memory before a task has asked for any: so much more of a device is let pass."""
WIPED_SHARE = 0.95
"""Of the memory that is free must have been overwritten; the driver keeps the rest for its own pages."""


class Use(Struct, frozen=True):
    """A device's memory at one moment. None: the driver does not tell."""

    free_bytes: int | None
    foreign_bytes: int = 0
    """Of programs that are not the pool's."""
    own_pids: tuple[int, ...] = ()
    """Processes of the pool that still have something of it."""


def what_is_left(before: Use, now: Use) -> str:
    """Why the device cannot be given to the next yet, in words; '' if all that the tenant had is free again.
    before: as it was when the tenant came."""
    if now.own_pids:
        return f"process {now.own_pids[0]} of its last tenant still uses it"
    if before.free_bytes is None or now.free_bytes is None:
        return "its driver does not tell how much memory is free"
    missing = before.free_bytes - max(0, now.foreign_bytes - before.foreign_bytes) - now.free_bytes
    if missing > TOLERANCE_BYTES:
        return f"{missing / 1e9:.2f} GB of its memory did not come free after its last tenant"
    return ""


def not_wiped(wiped_bytes: int, free_bytes: int) -> str:
    """Why a device's memory does not count as overwritten, in words; '' if it does."""
    if free_bytes > 0 and wiped_bytes >= max(free_bytes * WIPED_SHARE, free_bytes - TOLERANCE_BYTES):
        return ""
    return f"only {wiped_bytes / 1e9:.2f} of {free_bytes / 1e9:.2f} GB of its memory could be overwritten"


def cap_bytes(device: Device, need: GpuSpec) -> int:
    """Memory that a tenant of a part may use; 0: all of it."""
    return int(device.memory_bytes * need.share) if need.share < 1 else 0


def over_cap(device: Device, need: GpuSpec, used_bytes: int) -> str:
    """What to tell a tenant that uses too much; '' if it does not."""
    cap = cap_bytes(device, need)
    if not cap or used_bytes <= cap + device.memory_bytes * CAP_SLACK:
        return ""
    return (
        f"the worker used {used_bytes:,} bytes of GPU memory; its part ({need.share:g} of {device.model}) is {cap:,}. "
        f"Ask for more of a GPU, or have the library keep to the part"
    )
