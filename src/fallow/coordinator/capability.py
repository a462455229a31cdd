"""The leader's watch on claims: gathers at what rate tasks run where, and judges the nodes (core.capability)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fallow.core.capability import found_out
from fallow.model.ids import JobId, NodeId

if TYPE_CHECKING:
    from fallow.coordinator.context import Context
    from fallow.coordinator.directory import Directory

log = logging.getLogger(__name__)

EVERY_S = 10.0
JOBS_KEPT = 64
"""What the last jobs showed; older ones are forgotten."""


class Capability:
    """`tick` it each second. It sees the jobs that its own coordinator owns."""

    def __init__(self, context: Context, directory: Directory) -> None:
        self._context = context
        self._directory = directory
        self._next = 0.0
        self._rates: dict[JobId, dict[NodeId, float]] = {}

    def tick(self, now: float) -> None:
        if now < self._next or not self._context.session.leads:
            return
        self._next = now + EVERY_S
        self._gather()
        claims = {
            node_id: entry.spec.speed for node_id, entry in self._context.nodes.entries.items() if entry.spec.speed > 0
        }
        rates = {(job, node): rate for job, seen in self._rates.items() for node, rate in seen.items()}
        self.judge(found_out(rates, claims))

    def _gather(self) -> None:
        for job_id, owned in self._directory.active.items():
            if owned.spec.resources.gpu.count or not owned.progress.rates:
                continue  # how fast a GPU is says nothing of a slot's speed
            by_node: dict[NodeId, list[float]] = {}
            for (node_id, _), rate in owned.progress.rates.items():
                if rate.per_s > 0:
                    by_node.setdefault(node_id, []).append(rate.per_s)
            if by_node:
                self._rates.pop(job_id, None)
                self._rates[job_id] = {node: sum(seen) / len(seen) for node, seen in by_node.items()}
        while len(self._rates) > JOBS_KEPT:
            del self._rates[next(iter(self._rates))]

    def judge(self, measured: dict[NodeId, float]) -> None:
        """Have the matcher and listings go by what was measured."""
        for node_id, entry in self._context.nodes.entries.items():
            speed = measured.get(node_id, 0.0)
            if bool(speed) != bool(entry.judged_speed):
                claim = entry.spec.speed
                if speed:
                    log.warning("%s claims a speed of %.3g; its tasks show %.3g", entry.spec.name, claim, speed)
                else:
                    log.info("%s runs its tasks as fast as it claims", entry.spec.name)
            entry.judged_speed = speed
