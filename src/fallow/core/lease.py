"""Live leases and the pulls that wait for one, as plain records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from msgspec import Struct

from fallow.core.remainder import Remainder
from fallow.core.sizing import Rate
from fallow.model.ids import NodeId, SlotKey, Token


class KnownSlot:
    """What a job remembers of a slot. One record, since every event of the slot needs most of it."""

    __slots__ = (
        "idle",
        "is_aside",
        "is_late",
        "key",
        "last_size",
        "pages",
        "pull_seq",
        "rate",
        "seq",
        "tokens",
        "waits",
    )

    def __init__(self, key: SlotKey) -> None:
        self.key = key
        self.seq = -1
        """Of the newest pull that it is known to have sent."""
        self.waits = False
        """It has asked for a lease and has not got one: what it asked for follows."""
        self.is_aside = False
        """It asked, and its node may be gone."""
        self.is_late = False
        """It asked while a call stood that its client had sent it: that has answered this pull, or it is the next one,
        which will wait as soon as the call is handed in."""
        self.pull_seq = -1
        self.idle = False
        self.pages: frozenset[int] = frozenset()
        self.tokens: list[Token] = []
        """Its leases, the one that it runs first."""
        self.last_size = 0
        """Tasks in its last lease; 0: it has had none."""
        self.rate: Rate | None = None

    @property
    def node(self) -> NodeId:
        return self.key[0]


class LiveLease(Struct, eq=False, gc=False):
    """What the owner remembers of a lease. `pending`: what of it nobody has handed in or given back. (A struct that the
    garbage collector need not know: a large pool has tens of thousands, and none leads back to itself.)"""

    token: Token
    place: KnownSlot
    start: int
    stop: int
    pending: Remainder
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
    works_since: float | None = None
    """Since when its slot has worked on what is pending; None: it runs an earlier lease."""

    @property
    def slot(self) -> SlotKey:
        return self.place.key

    @property
    def node(self) -> NodeId:
        return self.place.key[0]

    @property
    def is_whole(self) -> bool:
        """Nothing has come of it: it may never have arrived."""
        return len(self.pending) == self.stop - self.start


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
