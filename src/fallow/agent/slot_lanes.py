"""The lanes of one slot: places for a worker and its lease, and which of them are lent. No IO, no clock."""

from __future__ import annotations

from collections.abc import Iterator

from fallow.agent.slot_effects import Held
from fallow.model.ids import JobId, Token

LEND_LIMIT = 4
"""Extra workers that one slot may have while its tasks wait for nested work."""


class Lane:
    """A place for a worker, and what it runs."""

    __slots__ = ("began_s", "held", "index", "last_took_s", "waiting")

    def __init__(self, index: int) -> None:
        self.index = index
        self.held: Held | None = None
        self.began_s = 0.0
        self.last_took_s = 0.0
        """Of the lease that ended last."""
        self.waiting = 0
        """How many threads of its task wait for nested work."""


class Lanes:
    """Lane 0 is always there; more are opened while tasks wait for nested work, up to LEND_LIMIT of them."""

    def __init__(self) -> None:
        self._lanes = [Lane(0)]

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def active(self) -> Lane | None:
        """One that keeps the slot busy."""
        return next((lane for lane in self._lanes if lane.held is not None and not lane.waiting), None)

    @property
    def lent_count(self) -> int:
        """Those whose task waits for nested work: they count as not there."""
        return sum(1 for lane in self._lanes if lane.waiting)

    def at(self, index: int) -> Lane | None:
        return next((lane for lane in self._lanes if lane.index == index), None)

    def of(self, job_id: JobId, token: Token) -> Lane | None:
        """The one that runs this lease."""
        for lane in self._lanes:
            if lane.held is not None and lane.held.token == token and lane.held.job_id == job_id:
                return lane
        return None

    def open(self) -> Lane:
        """One that runs nothing: a new one where all run something."""
        lane = next((lane for lane in self._lanes if lane.held is None), None)
        if lane is None:
            lane = Lane(max(lane.index for lane in self._lanes) + 1)
            self._lanes.append(lane)
        return lane

    def close_idle(self) -> list[Lane]:
        """Close the extra ones that run nothing; says which."""
        gone = [lane for lane in self._lanes[1:] if lane.held is None]
        self._lanes = [lane for lane in self._lanes if lane not in gone]
        return gone
