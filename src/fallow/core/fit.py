"""Whether a node could ever run a job, in words where it could not."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from fallow.core.gpus import room
from fallow.model.job import GpuSpec, JobSpec
from fallow.model.node import Device, NodeSpec
from fallow.model.tiers import Tier


def misfit(spec: JobSpec, node: NodeSpec) -> str | None:
    """Why the node could never run the job, in words; None if it could."""
    need = spec.resources
    if spec.env.python and spec.env.python not in node.pythons:
        return f"needs Python {spec.env.python}, and {node.name} has {', '.join(node.pythons)}"
    if reason := _tier_misfit(spec, node):
        return reason
    if need.cpu > node.slots:
        return f"needs {need.cpu} CPUs, and {node.name} lends {node.slots}"
    if need.memory_bytes > node.memory_bytes:
        return f"needs {_size(need.memory_bytes)} of memory, and {node.name} has {_size(node.memory_bytes)}"
    if need.gpu.count and not room(node.devices, need.gpu, node.shares_gpus):
        return f"needs {_need_words(need.gpu)}, and {node.name} has {_device_words(node.devices)}"
    return None


def _need_words(need: GpuSpec) -> str:
    count = f"{need.count} GPU" if need.share >= 1 else f"{need.share:.3g} of a GPU"
    wanted = " or ".join(need.models) or "any model"
    least = f" with {_size(need.min_memory_bytes)}" if need.min_memory_bytes else ""
    return f"{count} of {wanted}{least}"


def _device_words(devices: Sequence[Device]) -> str:
    return (
        ", ".join(
            f"{device.model} ({_size(device.memory_bytes)}{', out: ' + device.fault if device.fault else ''})"
            for device in devices
        )
        or "no GPU"
    )


def _tier_misfit(spec: JobSpec, node: NodeSpec) -> str | None:
    if spec.least_tier > node.tier:
        return f"needs a sandbox of the tier {_word(spec.least_tier)!r}, and {node.name} gives {_word(node.tier)!r}"
    if spec.least_tier == Tier.PROCESS and node.least_tier > Tier.PROCESS:
        # What comes back from there is read as plain data, which a job must have asked for.
        return (
            f"asks for no sandbox, and {node.name} is lent by a stranger and runs nothing without one: "
            "sandbox='isolated' lets it run there"
        )
    if spec.network and spec.least_tier > Tier.PROCESS and not node.network:
        return f"needs the network inside its sandbox, and {node.name} does not lend it"
    return None


def _word(tier: int) -> str:
    return Tier(tier).word if tier in Tier.__members__.values() else str(tier)


def too_large(spec: JobSpec, nodes: Sequence[NodeSpec]) -> str | None:
    """In words, if there are nodes and none of them could ever run the job, nor may turn out to have its Python."""
    reasons = [misfit(spec, node) for node in nodes]
    if not nodes or any(reason is None for reason in reasons):
        return None
    python = spec.env.python
    if any(
        node.seeks_pythons and misfit(spec, replace(node, pythons=(*node.pythons, python))) is None for node in nodes
    ):
        return None
    shown = "; ".join(reason for reason in reasons[:3] if reason)
    more = f"; and {len(reasons) - 3} nodes more" if len(reasons) > 3 else ""
    return f"no node of this pool can run {spec.name!r}: it {shown}{more}"


def _three(number: float) -> str:
    """To three digits, and never as 1e+04."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _size(size: int) -> str:
    """'25.3 GB', '900 TB'."""
    return f"{_three(size / 1e12)} TB" if size >= 1e12 else f"{size / 1e9:.3g} GB"
