"""Whether a node could ever run a job, in words where it could not."""

from __future__ import annotations

from collections.abc import Sequence

from fallow.model.job import JobSpec
from fallow.model.node import NodeSpec


def misfit(spec: JobSpec, node: NodeSpec) -> str | None:
    """Why the node could never run the job, in words; None if it could."""
    need = spec.resources
    if spec.env.python and spec.env.python not in node.pythons:
        return f"needs Python {spec.env.python}, and {node.name} has {', '.join(node.pythons)}"
    if need.cpu > node.slots:
        return f"needs {need.cpu} CPUs, and {node.name} lends {node.slots}"
    if need.memory_bytes > node.memory_bytes:
        return f"needs {_size(need.memory_bytes)} of memory, and {node.name} has {_size(node.memory_bytes)}"
    if need.gpu.count:
        fitting = [
            device
            for device in node.devices
            if device.memory_bytes >= need.gpu.min_memory_bytes
            and (not need.gpu.models or any(m.lower() in device.model.lower() for m in need.gpu.models))
        ]
        if len(fitting) < need.gpu.count:
            kinds = ", ".join(f"{d.model} ({_size(d.memory_bytes)})" for d in node.devices) or "no GPU"
            wanted = " or ".join(need.gpu.models) or "any model"
            least = f" with {_size(need.gpu.min_memory_bytes)}" if need.gpu.min_memory_bytes else ""
            return f"needs {need.gpu.count} GPU of {wanted}{least}, and {node.name} has {kinds}"
    return None


def too_large(spec: JobSpec, nodes: Sequence[NodeSpec]) -> str | None:
    """In words, if there are nodes and none of them could ever run the job."""
    reasons = [misfit(spec, node) for node in nodes]
    if not nodes or any(reason is None for reason in reasons):
        return None
    shown = "; ".join(reason for reason in reasons[:3] if reason)
    more = f"; and {len(reasons) - 3} nodes more" if len(reasons) > 3 else ""
    return f"no node of this pool can run {spec.name!r}: it {shown}{more}"


def _size(size: int) -> str:
    """'25.3 GB', '900 TB'."""
    return f"{size / 1e12:,.3g} TB" if size >= 1e12 else f"{size / 1e9:.3g} GB"
