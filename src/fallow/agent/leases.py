"""What a node's slots hold: leases, as it names them to the owners of its jobs, and jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fallow.model.ids import JobId
from fallow.model.parts import HeldLease

if TYPE_CHECKING:
    from fallow.agent.outbox import Outbox
    from fallow.agent.slot import Slot


def leases_by_job(slots: Iterable[Slot], outbox: Outbox) -> dict[JobId, tuple[HeldLease, ...]]:
    """Leases that run, wait, or have yet to be handed in, of each job; none of one that a slot only waits for."""
    held: dict[JobId, dict[object, HeldLease]] = {}
    for slot in slots:
        if (job_id := slot.machine.job_id) is not None:
            held.setdefault(job_id, {})
        for lease in slot.leases():
            held.setdefault(lease.job_id, {})[lease.token] = lease
    for lease in outbox.unsent():
        held.setdefault(lease.job_id, {}).setdefault(lease.token, lease)
    return {job_id: tuple(leases.values()) for job_id, leases in held.items()}


def jobs_in_use(slots: Iterable[Slot]) -> set[JobId]:
    """Jobs that a slot works for, or has something of."""
    slots = list(slots)
    used = {held.job_id for slot in slots for held in slot.machine.held()}
    return used | {job_id for slot in slots if (job_id := slot.machine.job_id) is not None}
