"""When the results of a map are written and told: where all slots are busy, several hand-ins share one commit and one
answer to the client, since each costs the processors that the tasks run on."""

from __future__ import annotations

SHARE_OF_AGE = 0.1
"""Of the time since the job began: the first results of a job wait for nothing."""
MOST_S = 0.75
RIPE = 0.6
"""After this share of that time the next hand-in is written as it comes, with all that waits: so that no timer has to
wake the processor once more."""
AT_ONCE_BYTES = 32 * 1024
"""So much in one hand-in is worth a commit of its own."""


class Gathering:
    """Of one job that began at `began_s`. All times are monotonic seconds of the caller."""

    __slots__ = ("_began_s", "_due_s", "_written_s")

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._written_s = 0.0
        """When what came last was written."""
        self._due_s = 0.0
        """When what waits is to be written; 0: nothing waits."""

    def wait_s(self, now: float, size: int, lacks_work: bool) -> float:
        """How long results of `size` bytes that came now may wait for others. `lacks_work`: a slot is idle, so that
        somebody may be waiting for these very results before there is more to do."""
        if self._due_s and now >= self._due_s:
            self._written_s, self._due_s = self._due_s, 0.0
        period_s = min(MOST_S, SHARE_OF_AGE * (now - self._began_s))
        if lacks_work or size >= AT_ONCE_BYTES or now >= self._written_s + RIPE * period_s:
            self._written_s, self._due_s = now, 0.0
            return 0.0
        if not self._due_s:
            self._due_s = self._written_s + period_s
        return self._due_s - now
