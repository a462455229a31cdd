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


MAP_WAITS_S = 3.0
_FIRST = 1e9


def served_in_turn(kind: JobKind, waits_s: float, served: float) -> float:
    """`served` of a job, as jobs take their turns by it where slots are few. `waits_s`: for how long something of it
    has been to run while nothing ran; negative: that is not so. Somebody waits for a single call, and it is short: a
    job of calls that waits comes at once before those that do not, and before new jobs, of which the next may be there
    when its turn comes. Any other job does so after MAP_WAITS_S, or calls would keep it waiting for ever."""
    return served - _FIRST if waits_s >= (0.0 if kind is JobKind.CALLS else MAP_WAITS_S) else served


def in_last_turn(served: float) -> float:
    """`served` of a job that wants nothing now, and would keep slots for what is to come (core.call_hold)."""
    return served + _FIRST


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
