"""Slots that are kept between the calls of a script that makes one after the other.

Between two calls its job wants nothing. A plan that is made just then would give its slot to a map, and the next call
would wait for a whole task of that. So the slots stay for a moment, unless there are too few for those that want one:
at the end of a script's calls the others do without them for a second or two.
"""

from __future__ import annotations

LOOK_S = 2.0
CALLS_LEAST = 2
"""Fewer calls than that within LOOK_S are not one after the other."""
KEPT_S = 0.9
"""After the plan that saw the last new call. (Plans come once a second at least, but for those of large pools.)"""


class CallHold:
    """Of one job of calls. Times are monotonic seconds of the caller."""

    __slots__ = ("_before", "_calls", "_grew_s", "_kept", "_most", "_since_s")

    def __init__(self, calls: int, now: float) -> None:
        self._calls = self._before = calls
        self._since_s = self._grew_s = now
        self._most = self._kept = 0

    def look(self, calls: int, want: int, now: float) -> int:
        """How many slots it keeps, or wants. calls: how many have come so far; want: those that are to run now."""
        if calls != self._calls:
            self._calls, self._grew_s = calls, now
        self._most = max(self._most, want)
        seen = max(1, self._most) if calls - self._before >= CALLS_LEAST else 0
        if now - self._since_s >= LOOK_S:
            self._before, self._since_s = calls, now
            self._kept, self._most = seen, want
        kept = max(self._kept, seen) if now - self._grew_s < KEPT_S else 0
        return max(want, kept)
