"""The leader's watch on claims: gathers at what rate tasks run where, and judges the nodes (core.capability)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fallow.coordinator.nodes import gpu_claim
from fallow.core.capability import found_out
from fallow.model.ids import JobId, NodeId

if TYPE_CHECKING:
    from fallow.coordinator.context import Context
    from fallow.coordinator.directory import Directory

log = logging.getLogger(__name__)

EVERY_S = 10.0
S_PER_NODE = 0.005
"""The more nodes there are, the more seldom: a look at one costs some 4 microseconds."""
JOBS_KEPT = 64
"""What the last jobs showed; older ones are forgotten."""

Rates = dict[JobId, dict[NodeId, float]]


class Capability:
    """`tick` it each second. It sees the jobs that its own coordinator owns."""

    def __init__(self, context: Context, directory: Directory) -> None:
        self._context = context
        self._directory = directory
        self._next = 0.0
        self._slot_rates: Rates = {}
        self._gpu_rates: Rates = {}
        """Of jobs that need GPUs: how fast those are says nothing of a slot's speed."""

    def tick(self, now: float) -> None:
        if now < self._next or not self._context.session.leads:
            return
        self._next = now + max(EVERY_S, len(self._context.nodes.entries) * S_PER_NODE)
        self._gather()
        entries = self._context.nodes.entries
        slots = found_out(_flat(self._slot_rates), {node: entry.spec.speed for node, entry in entries.items()})
        gpus = found_out(_flat(self._gpu_rates), {node: gpu_claim(entry.spec) for node, entry in entries.items()})
        for node_id, entry in entries.items():
            before = entry.judgement()
            self._context.nodes.judge(node_id, slots.get(node_id, 0.0), gpus.get(node_id, 0.0))
            words = entry.judgement()
            if words and not before:
                log.warning("%s %s", entry.spec.name, words)
            elif before and not words:
                log.info("%s runs its tasks as fast as it claims", entry.spec.name)

    def _gather(self) -> None:
        for job_id, owned in self._directory.active.items():
            by_node: dict[NodeId, list[float]] = {}
            for (node_id, _), per_s in owned.progress.slot_rates():
                if per_s > 0:
                    by_node.setdefault(node_id, []).append(per_s)
            if not by_node:
                continue
            rates = self._gpu_rates if owned.spec.resources.gpu.count else self._slot_rates
            rates.pop(job_id, None)
            rates[job_id] = {node: sum(seen) / len(seen) for node, seen in by_node.items()}
        for rates in (self._slot_rates, self._gpu_rates):
            while len(rates) > JOBS_KEPT:
                del rates[next(iter(rates))]


def _flat(rates: Rates) -> dict[tuple[JobId, NodeId], float]:
    return {(job, node): rate for job, seen in rates.items() for node, rate in seen.items()}
