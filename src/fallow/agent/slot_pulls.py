"""When a slot asks for a lease. No IO, no clock.

nothing to run, nothing queued     -> an idle pull stands
running, nothing queued            -> a pull that asks ahead stands, once the lease has run for AHEAD_AFTER_S; at once
                                      where the slot's last lease took long: the pull goes with its hand-in
something queued                   -> no pull is made
"""

from __future__ import annotations

from fallow.agent.slot_effects import StandingPull
from fallow.agent.slot_lanes import Lane
from fallow.model.ids import JobId

PULL_AGAIN_S = 5.0
AHEAD_AFTER_S = 0.002
"""A lease that ends sooner is followed by the pull in its hand-in: a single call costs one message less."""
LONG_LEASE_S = 0.02
"""After a lease that ran for so long the next one is not expected to end within AHEAD_AFTER_S."""


class Pulls:
    """At most one stands. `job_id`, in all of this: the job for which the slot would take a lease now, None: it takes
    none; `active`: the lane that keeps it busy. Times are seconds on the caller's monotonic clock."""

    __slots__ = ("_seq", "is_ahead_due", "standing")

    def __init__(self) -> None:
        self.standing: StandingPull | None = None
        self._seq = 0
        self.is_ahead_due = False
        """A tick is coming that will ask ahead."""

    def answered(self, job_id: JobId, seq: int) -> None:
        """A lease came for the pull of that number."""
        if self.standing is not None and self.standing.job_id == job_id and seq >= self.standing.seq:
            self.standing = None

    def is_stale(self, now: float) -> bool:
        """Nobody has answered for so long that the pull, or its answer, may be lost."""
        return self.standing is not None and now - self.standing.sent_s >= PULL_AGAIN_S

    def next(self, job_id: JobId | None, active: Lane | None, now: float) -> StandingPull | None:
        """The new pull that is to be sent now, if any. One that stands and asks for more than is wanted stays: it
        may be answered already, and a second would be answered too."""
        wanted = _wanted(job_id, active, now)
        if wanted is None:
            return None
        if self.standing is not None and (self.standing.idle or not wanted[1]):
            return None
        self._seq += 1
        self.standing = StandingPull(wanted[0], self._seq, wanted[1], now)
        return self.standing

    def ahead_in(self, job_id: JobId | None, active: Lane | None, now: float) -> float | None:
        """After so long a tick is due, which sees to it that the next lease is asked for where the one that runs
        turns out to take a while. None: no further tick is due."""
        if self.is_ahead_due or self.standing is not None or _wanted(job_id, active, now) is not None:
            return None
        if _wanted(job_id, active, now + AHEAD_AFTER_S) is None:
            return None
        self.is_ahead_due = True
        # A little later than that, since timers may be early by their precision.
        return AHEAD_AFTER_S * 1.5


def _wanted(job_id: JobId | None, active: Lane | None, now: float) -> tuple[JobId, bool] | None:
    """(job, idle) of the pull that should stand."""
    if job_id is None:
        return None
    if active is None or active.held is None:
        return job_id, True
    held = active.held
    if held.job_id == job_id and not held.alone and not held.revoked:
        is_due = active.last_took_s >= LONG_LEASE_S or now - active.began_s >= AHEAD_AFTER_S
        return (job_id, False) if is_due else None
    return None
