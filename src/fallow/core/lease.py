"""Live leases and the pulls that wait for one, as plain records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fallow.core.intervals import IntervalSet
from fallow.model.ids import NodeId, SlotKey, Token


@dataclass(slots=True)
class LiveLease:
    """What the owner remembers of a lease. `pending`: what of it nobody has handed in or given back."""

    token: Token
    slot: SlotKey
    start: int
    stop: int
    pending: IntervalSet
    granted_at: float
    seen_at: float
    """When a heartbeat last named it (or it was granted)."""
    alone: bool = False
    attempt: int = 0
    doubled: bool = False
    """A second run of a task in progress elsewhere: its pending tasks belong to the first lease too."""
    index: int = -1
    """Task in progress, as the last heartbeat said; -1: unknown or not begun."""
    index_since: float = 0.0
    index_holds_until: float = math.inf
    """From then on, what that heartbeat said of the index is too old to go by."""
    taking_back_at: float | None = None
    done_count: int = 0
    aimed_s: float = 0.0
    """How much work it was to be, by the rates of its time; 0: unknown."""
    pull_seq: int = -1
    """Of the pull that it answers; -1: another owner granted it."""
    sent_at: float = 0.0
    """When it was sent to its slot last."""

    @property
    def node(self) -> NodeId:
        return self.slot[0]

    @property
    def is_whole(self) -> bool:
        """Nothing has come of it: it may never have arrived."""
        return len(self.pending) == self.stop - self.start


@dataclass(slots=True)
class WaitingPull:
    """A slot that asked for a lease and has not got one."""

    slot: SlotKey
    seq: int
    idle: bool
    pages: frozenset[int]
    at: float


@dataclass(slots=True)
class Delayed:
    """A task that is not to run before a time."""

    not_before: float
    index: int
    attempt: int

    def __lt__(self, other: Delayed) -> bool:
        return (self.not_before, self.index) < (other.not_before, other.index)


@dataclass(slots=True)
class Suspect:
    """A task that was in progress when a worker died: runs alone, elsewhere where there is an elsewhere."""

    index: int
    lone_deaths: int = 0
    memory_deaths: int = 0
    node_losses: int = 0
    nodes: set[NodeId] = field(default_factory=set)
    full_nodes: set[NodeId] = field(default_factory=set)
    """Those that had no room for its result."""
