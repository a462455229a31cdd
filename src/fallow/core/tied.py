"""Slots that run a task for long: nobody gets them before it ends, so a plan is made for the others alone.

Planned as if they could change hands at once, a call that wants a slot might be given one that is free in an hour, and
count as served meanwhile. What a job has of them counts as its own, and who is short of its share gets them when they
are free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fallow.core.demand import JobDemand
from fallow.core.shares import fair_shares
from fallow.model.ids import JobId


def shares_of_all(demands: Sequence[JobDemand], slots: int) -> dict[JobId, int]:
    """What each job had if every slot were free now: groups of slots, by the job's id."""
    jobs = sorted(demands, key=lambda job: (job.served, job.order))
    claims = [(max(0, job.want), max(1, job.spec.resources.cpu)) for job in jobs]
    return {job.spec.job_id: share for job, share in zip(jobs, fair_shares(claims, slots), strict=True)}


def beside_tied(
    demands: Sequence[JobDemand], tied: Mapping[JobId, int], shares: Mapping[JobId, int]
) -> list[JobDemand]:
    """What jobs want of the other slots. tied: how many slots each job's long tasks have."""
    return [
        replace(job, want=max(0, shares[job.spec.job_id] - tied[job.spec.job_id])) if job.spec.job_id in tied else job
        for job in demands
    ]


def claims(
    shares: Mapping[JobId, int],
    planned: Mapping[JobId, int],
    tied: Mapping[JobId, int],
    claimed: Mapping[JobId, int],
    given: Mapping[JobId, int],
) -> list[tuple[JobId, JobId, int]]:
    """(whose long tasks, who is to have their slots once they end, how many). planned: slots that each job has
    besides. claimed: tied slots that are to be a job's already; given: those that are to be another's."""

    def has(job_id: JobId) -> int:
        return planned.get(job_id, 0) + tied.get(job_id, 0)

    spare = {job_id: has(job_id) - share - given.get(job_id, 0) for job_id, share in shares.items() if job_id in tied}
    found: list[tuple[JobId, JobId, int]] = []
    for job_id, share in shares.items():
        lacks = share - has(job_id) - claimed.get(job_id, 0)
        for rich, count in spare.items():
            moved = min(lacks, count)
            if moved > 0 and rich != job_id:
                found.append((rich, job_id, moved))
                spare[rich] = count - moved
                lacks -= moved
    return found
