"""Speed as measured, not as claimed: nodes whose tasks run at another rate than they say, GPUs that are not what they
say they are.

A claim is checked against other nodes with the same job. Tasks that wait for something run equally fast everywhere, so
a node is found out only if every job that says anything about it says that its claim is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from fallow.core.gpus import is_model
from fallow.model.gpu_figures import FP32_GFLOPS
from fallow.model.ids import JobId, NodeId
from fallow.model.node import Device

OFF_FACTOR = 3.0
"""A claim off by less than this is let pass: memory, caches and neighbours make as much of a difference."""
LEAST_NODES = 3
"""A job says something about a node if that many nodes with claims run it."""
LEAST_JOBS = 2
CLAIM_LIMIT = 1e9
"""Nodes may claim anything."""
LOWEST_SHARE, HIGHEST_SHARE = 0.25, 1.15
"""Of the figures of its model that a product of matrices may reach: power limits cut much, and nothing adds much."""
CUT_DOWN = ("laptop", "max-q", "mobile", "mig")
"""A device with one of these in its name is less than its model's figures say, and nobody knows how much."""


def found_out(rates: Mapping[tuple[JobId, NodeId], float], claims: Mapping[NodeId, float]) -> dict[NodeId, float]:
    """Nodes whose claim is off by more than OFF_FACTOR, with the speed that their tasks show.

    rates: tasks a second of one slot, by job and node. claims: speeds of nodes in any unit, > 0; others are passed
    over. Takes the median over the nodes of a job as the truth, so fewer than half of them may lie."""
    by_job: dict[JobId, dict[NodeId, float]] = {}
    for (job_id, node_id), rate in rates.items():
        claim = min(claims.get(node_id, 0.0), CLAIM_LIMIT)
        if rate > 0 and claim > 0:
            by_job.setdefault(job_id, {})[node_id] = rate / claim
    factors: dict[NodeId, list[float]] = {}
    for ratios in by_job.values():
        if len(ratios) < LEAST_NODES:
            continue
        middle = median(ratios.values())
        for node_id, ratio in ratios.items():
            factors.setdefault(node_id, []).append(ratio / middle)
    found = {}
    for node_id, seen in factors.items():
        if len(seen) < LEAST_JOBS:
            continue
        if max(seen) < 1 / OFF_FACTOR or min(seen) > OFF_FACTOR:
            found[node_id] = min(claims[node_id], CLAIM_LIMIT) * median(seen)
    return found


def implausible(device: Device) -> str:
    """Why a GPU cannot be the model that it says it is, in words; '' if it can, or was not measured."""
    lowered = device.model.lower()
    if device.speed <= 0 or device.vendor != "nvidia" or any(word in lowered for word in CUT_DOWN):
        return ""
    fitting = [model for model in FP32_GFLOPS if is_model(device.model, model)]
    if not fitting:
        return ""
    model = max(fitting, key=len)
    low, high = FP32_GFLOPS[model]
    if low * LOWEST_SHARE <= device.speed <= high * HIGHEST_SHARE:
        return ""
    side = "slow" if device.speed < low else "fast"
    return (
        f"it says it is a {model}, and is too {side} for one: {device.speed / 1000:.3g} Tflop/s measured, "
        f"{low * LOWEST_SHARE / 1000:.3g} to {high * HIGHEST_SHARE / 1000:.3g} are possible"
    )
