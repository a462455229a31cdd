"""The leader's slots that run long tasks: left out of its plans, and promised to those who are short (core.tied)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fallow.coordinator.nodes import NodeRegistry
from fallow.core.demand import JobDemand, Moves, Plan
from fallow.core.fit import misfit
from fallow.core.tied import beside_tied, claims, shares_of_all
from fallow.model.ids import JobId, NodeId, SlotKey


class TiedSlots:
    """Around each plan: `demands` before it, `settle` after it."""

    def __init__(self, nodes: NodeRegistry) -> None:
        self._nodes = nodes
        self._shares: dict[JobId, int] = {}

    def demands(self, demands: list[JobDemand]) -> list[JobDemand]:
        """What is to be planned."""
        self._shares = {}
        if not self._nodes.tied:
            return demands
        self._shares = shares_of_all(demands, self._nodes.slot_count())
        return beside_tied(demands, self._counts(), self._shares)

    def settle(self, demands: Sequence[JobDemand], plan: Plan, now: float) -> None:
        """Count what is tied to the jobs' own, and say who gets it next."""
        if not self._shares:
            return
        nodes = self._nodes
        by_id = {demand.spec.job_id: demand for demand in demands}
        counts = {job_id: count for job_id, count in self._counts().items() if job_id in by_id}
        claimed: Counter[JobId] = Counter()
        given: Counter[JobId] = Counter()
        for job_id, slots in nodes.tied.items():
            for node_id, slot in slots:
                next_id = nodes.entries[node_id].assigned.get(slot)
                if next_id is not None and next_id != job_id:
                    claimed[next_id] += 1
                    given[job_id] += 1
        for whose, who, count in claims(self._shares, plan.shares, counts, claimed, given):
            promised: dict[NodeId, Moves] = {}
            for node_id, slot in self._free_for(by_id[who], whose)[:count]:
                promised[node_id] = (*promised.get(node_id, ()), (slot, who))
            nodes.assign(list(promised.items()), now)
        for job_id, count in counts.items():
            plan.shares[job_id] = plan.shares.get(job_id, 0) + count

    def _counts(self) -> dict[JobId, int]:
        return {job_id: len(slots) for job_id, slots in self._nodes.tied.items()}

    def _free_for(self, demand: JobDemand, whose: JobId) -> list[SlotKey]:
        """Slots of another's long tasks that are promised to nobody, and that the job could use."""
        spec, entries = demand.spec, self._nodes.entries
        if spec.resources.cpu > 1 or spec.resources.gpu.count or spec.max_nodes:
            return []  # what those need is more than one slot's business
        return [
            (node_id, slot)
            for node_id, slot in self._nodes.tied[whose]
            if entries[node_id].assigned.get(slot) == whose
            and node_id not in demand.refused
            and misfit(spec, entries[node_id].spec) is None
        ]
