"""Which jobs a commit writes, and the proof that the committer owns them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fallow.model.ids import JobId
from fallow.store.database import Session
from fallow.store.protocol import CreateJob, DeleteJob, Op, OwnershipLost, PutNode

_encode_json = msgspec.json.Encoder().encode


class Batch:
    """The jobs that a commit writes: their numbers, once it is certain that the committer owns them.

    Made inside the commit's transaction; raises OwnershipLost. `ops`: what is left to do."""

    def __init__(self, session: Session, ops: Sequence[Op]) -> None:
        self.session = session
        self.numbers: dict[JobId, int] = {}
        self.inputs_below: dict[JobId, int] = {}
        self.ops: Sequence[Op] = ops
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
        if not epochs and not creators:
            return
        held: dict[JobId, tuple[int, str]] = {}
        ids = sorted(epochs.keys() | creators.keys())
        for job_id, number, epoch, owner, below in session.run("owned", {"ids": _encode_json(ids).decode()}):
            self.numbers[job_id] = number
            self.inputs_below[job_id] = below
            held[job_id] = (epoch, owner)
        lost: list[JobId] = []
        ended: set[JobId] = set()
        for job_id, claimed in epochs.items():
            if job_id in held:
                epoch, owner = held[job_id]
                if claimed != {epoch} or creators.get(job_id, owner) != owner:
                    lost.append(job_id)
            elif job_id in creators:
                if claimed != {1}:
                    lost.append(job_id)
            elif last[job_id] is DeleteJob:
                ended.add(job_id)  # the same commit was applied before: nothing is left to do
            else:
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
