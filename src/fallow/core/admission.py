"""What a coordinator takes in: nothing new while it is behind, and of each account no more than its limits say.

Only new work is judged here. Leases, hand-ins and what ends a job are always taken: they make the pile smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fallow.core.demand import JobDemand
from fallow.model.job import AccountLimits

SHED_AFTER_S = 2.0
"""A coordinator that hears what is said to it this much later takes no new work..."""
RESUME_BELOW_S = 0.5
"""...until it has caught up so far."""
SERVED_STEP_S = 10.0
"""Slot seconds of late by which jobs of an account count as served alike: slots do not change hands for less."""
ANYBODY = "*"
"""The account whose limits hold for each one that is not named."""


@dataclass(slots=True)
class Overload:
    """Whether new work is shed. Two bounds, so that it does not change with every message."""

    behind_s: float = 0.0
    sheds: bool = False

    def note(self, behind_s: float) -> None:
        """How long ago that was said which is heard only now, in seconds."""
        self.behind_s = behind_s
        self.sheds = behind_s > (RESUME_BELOW_S if self.sheds else SHED_AFTER_S)

    def refusal(self) -> str:
        """In words; '' while new work is welcome."""
        if not self.sheds:
            return ""
        return (
            f"the coordinator is {self.behind_s:.1f} s behind with what it was sent, and takes no new work until "
            "it has caught up; what runs goes on"
        )


def limits_of(limits: Mapping[str, AccountLimits], account: str) -> AccountLimits:
    """What holds for the account: its own limits, else everybody's, else none."""
    return limits.get(account) or limits.get(ANYBODY) or AccountLimits()


def jobs_refusal(limits: Mapping[str, AccountLimits], account: str, jobs: int) -> str:
    """Why an account with so many jobs at work gets no further one, in words; '': it does."""
    most = limits_of(limits, account).jobs
    if not most or jobs < most:
        return ""
    return (
        f"the account {account!r} has {jobs} jobs in the pool, and may have {most} at once. Wait until one ends, "
        "cancel one (`fallow jobs --active` lists them), or ask whoever runs the pool for more."
    )


def within_limits(demands: Sequence[JobDemand], limits: Mapping[str, AccountLimits]) -> dict[str, int]:
    """How many tasks each job may run at once, by its id, where its account's slots are fewer than what its jobs want;
    jobs of other accounts are not in it."""
    accounts: dict[str, list[JobDemand]] = {}
    for demand in demands:
        if limits_of(limits, demand.spec.account).slots:
            accounts.setdefault(demand.spec.account, []).append(demand)
    found: dict[str, int] = {}
    for account, jobs in accounts.items():
        slots = limits_of(limits, account).slots
        if sum(job.want * _cpu(job) for job in jobs) > slots:
            found |= _shared(jobs, slots)
    return found


def _cpu(job: JobDemand) -> int:
    return max(1, job.spec.resources.cpu)


def _shared(jobs: Sequence[JobDemand], slots: int) -> dict[str, int]:
    """Equal shares of the slots, what one does not want going to the others; where there are too few for all, those go
    first that were served least."""
    given = {str(job.spec.job_id): 0 for job in jobs}
    waiting = sorted((job for job in jobs if job.want), key=lambda job: (job.served // SERVED_STEP_S, job.order))
    while waiting:
        share = slots // len(waiting)
        rest = []
        for job in waiting:
            key, cpu = str(job.spec.job_id), _cpu(job)
            more = min(job.want - given[key], max(share, cpu) // cpu, slots // cpu)
            given[key] += more
            slots -= more * cpu
            if more and given[key] < job.want:
                rest.append(job)
        waiting = rest
    return given
