"""Runs the matching when something changed, and sends what the plan changes."""

from __future__ import annotations

from fallow.coordinator.context import Context
from fallow.coordinator.directory import Directory
from fallow.coordinator.owned_job import OwnedJob
from fallow.core.matching import SERVED_HALF_LIFE_S, JobDemand, plan, too_large
from fallow.model.job import JobKind
from fallow.model.node import NodeSpec

LEAST_INTERVAL_S = 0.005
TICK_S = 1.0
MISFIT_GRACE_S = 5.0
"""A job that no node could run waits this long for one that can before it is failed in words."""
DEMAND_LIMIT = 1 << 20


class Matcher:
    """See the module. `kick` may be called at any rate."""

    def __init__(self, context: Context, directory: Directory) -> None:
        self._context = context
        self._directory = directory
        self._scheduled = False
        self._ran_at = -1e9
        self._misfit_since: dict[str, float] = {}

    def kick(self) -> None:
        """Plan soon: at once if the last plan is a while ago."""
        if self._scheduled:
            return
        self._scheduled = True
        delay = max(0.0, self._ran_at + LEAST_INTERVAL_S - self._context.now())
        if delay:
            self._context.loop.call_later(delay, self._run)
        else:
            self._context.loop.call_soon(self._run)

    def tick(self, now: float) -> None:
        if now - self._ran_at >= TICK_S and not self._scheduled:
            self.kick()

    def _run(self) -> None:
        self._scheduled = False
        now = self._context.now()
        elapsed = min(now - self._ran_at, TICK_S * 2)
        self._ran_at = now
        jobs = [owned for owned in self._directory.active.values() if not owned.progress.is_final]
        keep = 0.5 ** (elapsed / SERVED_HALF_LIFE_S)
        demands = []
        for order, owned in enumerate(jobs):
            owned.served = owned.served * keep + len(owned.progress.by_slot) * elapsed
            demands.append(
                JobDemand(
                    spec=owned.spec,
                    want=min(owned.progress.demand, DEMAND_LIMIT),
                    served=owned.served,
                    order=order,
                    refused=frozenset(owned.refused),
                )
            )
        nodes = self._context.nodes
        result = plan(demands, nodes.views())
        for owned in jobs:
            owned.progress.slots = max(1, result.shares.get(owned.job_id, 0))
        nodes.assign(result.changes.items(), now)
        self._check_misfits(jobs, now)

    def _check_misfits(self, jobs: list[OwnedJob], now: float) -> None:
        """Fail jobs for which the pool has nodes, but for a while now none that could run them."""
        specs: list[NodeSpec] = self._context.nodes.alive_specs()
        seen: set[str] = set()
        for owned in jobs:
            if (
                owned.progress.slots > 1
                or owned.progress.by_slot
                or (owned.spec.kind is JobKind.CALLS and not owned.progress.demand)
            ):
                continue
            usable = [spec for spec in specs if spec.node_id not in owned.refused]
            reason = too_large(owned.spec, usable) if usable else None
            kind = "too_large"
            if reason is not None and "needs Python" in reason:
                kind = "python"
            if reason is None and specs and not usable:
                words = sorted(set(owned.refused.values()))
                reason = f"every node of the pool refused {owned.spec.name!r}: {'; '.join(words[:3])}"
                kind = "environment"
            if reason is None:
                continue
            seen.add(owned.job_id)
            since = self._misfit_since.setdefault(owned.job_id, now)
            if now - since >= MISFIT_GRACE_S:
                owned.perform(owned.progress.fail(reason, kind))
        for job_id in [j for j in self._misfit_since if j not in seen]:
            del self._misfit_since[job_id]
