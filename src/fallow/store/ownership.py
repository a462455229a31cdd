"""Which jobs a commit writes, and the proof that the committer owns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select

from fallow.model.ids import JobId
from fallow.store import tables
from fallow.store.protocol import CreateJob, DeleteJob, Op, OwnershipLost, PutNode

_jobs = tables.jobs.c

_OWNED = (
    select(_jobs.job_id, _jobs.number, _jobs.epoch, _jobs.owner, _jobs.inputs_below)
    .where(_jobs.job_id.in_(bindparam("ids", expanding=True)))
    .with_for_update()
)


class Batch:
    """The jobs that a commit writes: their numbers, once it is certain that the committer owns them.

    Made inside the commit's transaction; raises OwnershipLost. `ops`: what is left to do."""

    def __init__(self, connection: Connection, ops: Sequence[Op]) -> None:
        self.connection = connection
        self.numbers: dict[str, int] = {}
        self.inputs_below: dict[str, int] = {}
        epochs: dict[JobId, set[int]] = {}
        creators: dict[JobId, str] = {}
        last: dict[JobId, type[Op]] = {}
        for op in ops:
            if isinstance(op, CreateJob):
                creators.setdefault(op.spec.job_id, op.owner)
            elif not isinstance(op, PutNode):
                job_id: JobId = op.job_id  # type: ignore[attr-defined]
                epochs.setdefault(job_id, set()).add(op.epoch)  # type: ignore[attr-defined]
                last[job_id] = type(op)
        self.ops: Sequence[Op] = ops
        if not epochs and not creators:
            return
        found: dict[JobId, Any] = {
            row.job_id: row
            for row in connection.execute(_OWNED, {"ids": sorted(epochs.keys() | creators.keys())}).all()
        }
        lost: list[JobId] = []
        ended: set[JobId] = set()
        for job_id, row in found.items():
            self.numbers[job_id] = row.number
            self.inputs_below[job_id] = row.inputs_below
        for job_id, held in epochs.items():
            row = found.get(job_id)
            if row is None:
                if job_id in creators:
                    if held != {1}:
                        lost.append(job_id)
                elif last[job_id] is DeleteJob:
                    ended.add(job_id)  # the same commit was applied before: nothing is left to do
                else:
                    lost.append(job_id)
            elif held != {row.epoch} or creators.get(job_id, row.owner) != row.owner:
                lost.append(job_id)
        if lost:
            raise OwnershipLost(lost)
        if ended:
            self.ops = [op for op in ops if getattr(op, "job_id", None) not in ended]

    def number(self, job_id: JobId) -> int:
        """Raises OwnershipLost for a job that this very commit has deleted before."""
        try:
            return self.numbers[job_id]
        except KeyError:
            raise OwnershipLost([job_id]) from None
