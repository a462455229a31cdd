"""The leader's planner, kept from one plan to the next: told of the nodes that changed and of what jobs want now."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fallow.coordinator.nodes import NodeRegistry
from fallow.core.matching import JobDemand, Plan, Planner
from fallow.model.ids import JobId, NodeId

log = logging.getLogger(__name__)


class KeptPlanner:
    """Made anew from all nodes when this coordinator comes to lead, and where `compare` finds it wrong."""

    def __init__(self, nodes: NodeRegistry) -> None:
        self._nodes = nodes
        self._planner = Planner()
        self._era = -1
        """The registry's, of which the planner knows; -1: none."""
        self._to_compare: list[NodeId] = []

    def plan(self, demands: Sequence[JobDemand]) -> Plan:
        """What changes, given every job that has not ended. Whoever calls applies it to the nodes at once."""
        nodes = self._nodes
        if self._era != nodes.era:
            self._planner = Planner()
            self._era = nodes.era
            nodes.changed = dict.fromkeys(nodes.entries)
        planner = self._planner
        wanted = {demand.spec.job_id for demand in demands}
        for job_id in nodes.forgotten:
            if job_id in wanted:  # it ended and began again: its slots are free on the nodes, and may be given anew
                nodes.changed.update(dict.fromkeys(planner.nodes_of(job_id)))
            planner.remove_job(job_id)
        nodes.forgotten.clear()
        for job_id in [job_id for job_id in planner.jobs if job_id not in wanted]:
            planner.remove_job(job_id)
        for demand in demands:
            planner.put_job(demand)
        changed, nodes.changed = nodes.changed, {}
        here = []
        for node_id in changed:
            view = nodes.view(node_id)
            if view is None:
                planner.remove_node(node_id)
            else:
                here.append(view)
        planner.put_nodes(here)
        return planner.plan()

    def surely_fits(self, job_id: JobId) -> bool:
        """Of a job of the last plan: see Books.surely_fits."""
        return self._planner.surely_fits(job_id)

    def compare(self, most: int = 1 << 62) -> bool:
        """Whether the planner believes what the nodes have. Where it does not, the next plan is made anew. At most so
        many nodes are looked at, the next ones with the next call."""
        nodes, planner = self._nodes, self._planner
        if self._era != nodes.era or nodes.forgotten:
            return True  # the next plan settles that
        if not self._to_compare:
            here = sum(1 for node_id in nodes.entries if nodes.is_here(node_id))
            if not nodes.changed and here != len(planner.nodes):
                return self._doubt(f"{here} nodes, not {len(planner.nodes)}")
            self._to_compare = list(nodes.entries)
        for _ in range(min(most, len(self._to_compare))):
            node_id = self._to_compare.pop()
            view = nodes.view(node_id) if node_id not in nodes.changed else None
            if view is None or not view.open:
                continue
            assigned = {slot: job_id for slot, job_id in view.assigned.items() if job_id is not None}
            if assigned != planner.assigned(node_id):
                return self._doubt(f"slots of node {node_id}")
        return True

    @property
    def is_compared(self) -> bool:
        """Whether the last comparison has gone through all nodes."""
        return not self._to_compare

    def _doubt(self, words: str) -> bool:
        log.warning("the plan was not what the nodes have (%s): the next is made anew from all nodes", words)
        self._era = -1
        self._to_compare.clear()
        return False
