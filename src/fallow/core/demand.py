"""What the matcher is told and what it answers: a job's demand, a node's slots, a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fallow.model.ids import JobId, NodeId, SlotKey
from fallow.model.job import JobKind, JobSpec
from fallow.model.node import NodeSpec


@dataclass(slots=True)
class JobDemand:
    """What the matcher knows of a job. `want`: tasks that could run at once now. `served`: slot seconds of late."""

    spec: JobSpec
    want: int
    served: float = 0.0
    order: int = 0
    refused: frozenset[NodeId] = frozenset()


CALLS_FIRST = 1e9


def served_in_turn(kind: JobKind, waits: bool, served: float) -> float:
    """`served` of a job, as jobs take their turns by it where slots are few. `waits`: something of it is to run, and
    nothing runs. Somebody waits for a single call, and it is short: a job of calls that waits comes before all others,
    also before new ones, of which the next may be there when its turn comes."""
    return served - CALLS_FIRST if waits and kind is JobKind.CALLS else served


@dataclass(slots=True)
class NodeView:
    """A live node and what its slots are assigned to now."""

    spec: NodeSpec
    assigned: Mapping[int, JobId | None]
    open: bool = True
    """False while it drains: it gets nothing new."""
    paused: frozenset[int] = frozenset()
    """Slots on which its owner lets nothing run now."""


Moves = tuple[tuple[int, JobId | None], ...]
"""Slots of one node, and the job that each has from now on (None: nothing). Many nodes share one."""


@dataclass(slots=True)
class Plan:
    """Every slot's job, for those whose assignment changes."""

    moves: list[tuple[NodeId, Moves]] = field(default_factory=list)
    """Each node once."""
    shares: dict[JobId, int] = field(default_factory=dict)
    """How many groups of slots each job has after the plan, draining nodes not counted."""

    @property
    def changes(self) -> dict[SlotKey, JobId | None]:
        """`moves` by slot; made at each call."""
        return {(node_id, slot): job_id for node_id, moves in self.moves for slot, job_id in moves}
