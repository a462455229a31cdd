"""Which slot works for which job: a pure plan over a snapshot.

Slots are shared max-min fairly: each round gives every job that still wants slots one more, those first that were
served least of late. A slot stays with its job while that job is entitled to it, so that warm workers and caches
keep their use; slots that nobody needs keep their last job too (a standing job of single calls finds them parked).

The work is done by core.planner, which can also be kept and told of changes one by one; this is the way in for a
snapshot as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from fallow.core.demand import JobDemand, NodeView, Plan
from fallow.core.fit import misfit, too_large
from fallow.core.planner import Planner

__all__ = ["SERVED_HALF_LIFE_S", "JobDemand", "NodeView", "Plan", "Planner", "misfit", "plan", "too_large"]

SERVED_HALF_LIFE_S = 10.0


def plan(jobs: Sequence[JobDemand], nodes: Sequence[NodeView]) -> Plan:
    """Assign slots to jobs. Jobs ask for `cpu` adjacent slots a task and get the first of each group."""
    planner = Planner()
    for job in jobs:
        planner.put_job(job)
    planner.put_nodes(nodes)
    return planner.plan()
