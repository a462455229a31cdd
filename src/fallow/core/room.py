"""What the room that is left on the disk of the pool's blobs allows.

Three things share that disk, and give way in this order. What was read is garbage: where there is room it stays for a
while, where it is short it goes as soon as nobody can need it. Inputs stay out next: a disk that is full of inputs has
no room for the results that would let them go. Results come last: leases hold no more tasks than their results have
room for, and where there is none they wait until something was read.
"""

from __future__ import annotations

from typing import NamedTuple

GARBAGE_KEPT_S = 15.0
"""What was read is kept so long where there is room."""
ORPHANS_KEPT_S = 3600.0
"""What a job would name, and none does: its client or node died before it could say so, or its owner before it could
delete it. It is kept so long where there is room..."""
ORPHANS_KEPT_SHORT_S = 600.0
"""...and so long where it is short."""

SHORT_SHARE, SHORT_MOST_BYTES = 2, 4 << 30
"""Room is short where less is free than the disk's size divided by the one, and than the other."""
INPUTS_LEAVE_SHARE, INPUTS_LEAVE_MOST_BYTES = 4, 64 << 20
"""In the same way: what inputs leave free."""
RESULTS_LEAVE_SHARE, RESULTS_LEAVE_MOST_BYTES = 8, 32 << 20
"""What results leave free, as far as they can be foreseen."""
LEASES_PER_SLOT = 2
"""Of the room for results a lease gets a share, as if each slot were about to get so many leases: one that runs, and
one that waits."""

FILLED_PER_S = 1 << 30
"""As many bytes a second as a machine may write: room is looked at before half of it can be gone..."""
LOOK_LEAST_S, LOOK_MOST_S = 0.1, 2.0
"""...within these bounds."""


class Room(NamedTuple):
    """Bytes that are free, and in all."""

    free: int
    total: int

    @property
    def is_short(self) -> bool:
        """Garbage goes at once."""
        return self.free < _least(self.total, SHORT_SHARE, SHORT_MOST_BYTES)

    def takes_inputs(self, size: int) -> bool:
        """Whether inputs, functions or objects of so many bytes may be put now."""
        return self.free - size >= self.inputs_leave

    def could_take_inputs(self, size: int) -> bool:
        """Whether they might, were the disk empty."""
        return self.total - size >= self.inputs_leave

    @property
    def inputs_leave(self) -> int:
        return _least(self.total, INPUTS_LEAVE_SHARE, INPUTS_LEAVE_MOST_BYTES)

    def result_tasks(self, task_bytes: float, promised_bytes: float) -> int:
        """How many more tasks may be leased whose results take `task_bytes` each; `promised_bytes`: what results of
        those that are leased already will take. 0: none, but what a reader waits for."""
        left = self.free - promised_bytes - _least(self.total, RESULTS_LEAVE_SHARE, RESULTS_LEAVE_MOST_BYTES)
        return max(0, int(left / max(task_bytes, 1e-3)))

    def garbage_kept_s(self, least_s: float) -> float:
        """How long to keep what was read; `least_s` is what somebody may take to name again what he has put."""
        return least_s if self.is_short else max(least_s, GARBAGE_KEPT_S)

    @property
    def orphans_kept_s(self) -> float:
        return ORPHANS_KEPT_SHORT_S if self.is_short else ORPHANS_KEPT_S

    @property
    def look_again_s(self) -> float:
        """When to look at the disk again, in seconds."""
        return min(LOOK_MOST_S, max(LOOK_LEAST_S, self.free / (2 * FILLED_PER_S)))


def lease_share(tasks: int, slots: int) -> int:
    """How many of so many tasks one lease may have, where `slots` slots work."""
    return max(1, tasks // (LEASES_PER_SLOT * max(1, slots)))


def _least(total: int, share: int, most: int) -> int:
    return min(total // share, most)


class ResultBytes:
    """What results of one job take on that disk: a mean in which the last ones weigh most."""

    __slots__ = ("_bytes", "_tasks")

    def __init__(self) -> None:
        self._bytes = 0.0
        self._tasks = 0.0

    def note(self, tasks: int, size: int) -> None:
        """`tasks` more results came, with `size` bytes in files."""
        keep = 0.9 if self._tasks > tasks else 0.5
        self._tasks = self._tasks * keep + tasks
        self._bytes = self._bytes * keep + size

    @property
    def per_task(self) -> float:
        return self._bytes / self._tasks if self._tasks else 0.0
