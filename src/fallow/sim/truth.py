"""The store of a simulated pool: who owns what under which epoch, and what has been recorded.

It is also the auditor: a task that is recorded twice, or a write by a fenced owner that counts, ends the run.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fallow.core.intervals import IntervalSet
from fallow.model.ids import Interval, JobId
from fallow.model.job import JobSpec

if TYPE_CHECKING:
    from fallow.sim.coordinator import Owned
    from fallow.sim.node import Slot


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True, eq=False)
class JobRow:
    spec: JobSpec
    total: int
    task_s: float
    poison: int
    epoch: int = 0
    owner: int = -1
    failed: IntervalSet = field(default_factory=IntervalSet)
    arrived_at: float = -1.0
    ended_at: float = -1.0
    marks: bytearray = field(init=False, repr=False)
    """One byte a task, 1 when it is recorded: the audit does not trust the interval sets that it checks."""
    bit: int = 1
    """Its own among all jobs' (Node.rows)."""
    epochs: array[int] = field(default_factory=lambda: array("i"), repr=False)
    """By number of node: the highest epoch that it has seen in its session. Empty until the job arrives."""
    slots: dict[Slot, None] = field(default_factory=dict)
    """Slots that are assigned to it or run something of it."""
    owners: list[Owned] = field(default_factory=list)
    """All that take themselves for its owner."""

    def __post_init__(self) -> None:
        self.marks = bytearray(self.total)

    @property
    def done(self) -> IntervalSet:
        """What is recorded: looked for anew each time."""
        found = IntervalSet()
        start = self.marks.find(1)
        while start >= 0:
            stop = self.marks.find(0, start)
            if stop < 0:
                stop = self.total
            found.add(start, stop)
            start = self.marks.find(1, stop)
        return found

    @property
    def missing(self) -> int:
        return self.total - self.marks.count(1)

    @property
    def job_id(self) -> JobId:
        return self.spec.job_id

    @property
    def is_open(self) -> bool:
        return self.arrived_at >= 0 and self.ended_at < 0

    def kills(self, index: int) -> bool:
        """Whether this task kills its worker, always."""
        return self.poison > 0 and index % self.poison == self.poison // 2


class Truth:
    """Commits are atomic. `fenced` counts those that were refused."""

    def __init__(self) -> None:
        self.jobs: dict[JobId, JobRow] = {}
        self.fenced = 0
        self.commits = 0
        self.recorded = 0
        self.open_count = 0

    def acquire(self, row: JobRow, owner: int) -> int:
        """The next epoch of the job is this owner's."""
        row.epoch += 1
        row.owner = owner
        return row.epoch

    def commit(
        self, row: JobRow, epoch: int, results: Sequence[Interval], faults: Sequence[int], ended: bool, now: float
    ) -> bool:
        """False: another owns the job now, and nothing was written."""
        if epoch != row.epoch:
            self.fenced += 1
            return False
        self.commits += 1
        for start, stop in [*results, *[(index, index + 1) for index in faults]] if faults else results:
            if not 0 <= start < stop <= row.total:
                raise Broken(f"{row.job_id}: [{start}, {stop}) of {row.total} tasks was recorded")
            again = row.marks.find(1, start, stop)
            if again >= 0:
                raise Broken(f"{row.job_id}: task {again} was recorded a second time, with [{start}, {stop})")
            row.marks[start:stop] = b"\1" * (stop - start)
            self.recorded += stop - start
        for index in faults:
            row.failed.add(index, index + 1)
        if ended:
            if row.missing:
                raise Broken(f"{row.job_id} ended with {row.missing} of {row.total} tasks missing")
            row.ended_at = now
            self.open_count -= 1
        return True
