"""Which coordinators have fallen silent, as another one sees it, and what of theirs is anybody's.

No wall clock says so: the store's may be set while the pool runs, an hour forward (everybody would be dead at once) or
back (the dead would live for an hour). Every renewal of a session changes its stamp, and whoever watches takes the
time between two stamps on a clock of its own that nobody sets. Only how fast clocks go has to be the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf
from typing import NamedTuple

from fallow.model.ids import JobId


class Renewal(NamedTuple):
    """What the store says of a session that nobody has ended."""

    owner: str
    stamp: float
    """Another one, and a higher one, with every renewal."""
    ttl_s: float
    """Its owner falls silent before that, should it not be renewed."""
    info: str = ""


def to_take(orphans: Iterable[tuple[JobId, str]], released: Collection[JobId]) -> tuple[list[JobId], set[JobId]]:
    """Of jobs without a living owner, with the owner they had ('' where it released them): those that anybody may take
    up, and those that were released. Such a job is on its way to somebody, with its leases: it is anybody's only where
    it was among the `released` when they were last looked at."""
    orphans = list(orphans)
    taken = [job_id for job_id, owner in orphans if owner or job_id in released]
    return taken, {job_id for job_id, owner in orphans if not owner}


class SessionWatch:
    """Told from time to time what sessions there are."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}
        self.first_s = inf
        """When the first of them will have been silent for too long, should it not be renewed before."""

    def silent(self, renewals: Iterable[Renewal], now: float) -> list[Renewal]:
        """Those that have stood still for as long as they hold. `now`: a steady clock's time, in seconds, once
        `renewals` had been read. A session may still be renewed after that: so it is ended on condition that its
        stamp is the same."""
        seen, self._seen = self._seen, {}
        found, self.first_s = [], inf
        for renewal in renewals:
            stamp, since = seen.get(renewal.owner, (renewal.stamp, now))
            if stamp != renewal.stamp:
                since = now
            self._seen[renewal.owner] = renewal.stamp, since
            if now - since >= renewal.ttl_s:
                found.append(renewal)
            else:
                self.first_s = min(self.first_s, since + renewal.ttl_s)
        return found
