"""Slots that are kept between the calls of a script that makes one after the other.

Between two calls its job wants nothing. A plan that is made just then would give its slot to a map, and the next call
would wait for a whole task of that. So the slots stay for a moment, unless there are too few for those that want one:
after a script's last call the others do without them for a second or two. One short call by itself keeps nothing.
"""

from __future__ import annotations

CAME_S = 0.9
"""Kept after a plan that found new calls, all of them over."""
WANTED_S = 1.4
"""Kept after a plan that found calls to run: the next plan, a second later or a little more, is not to take the slots
where they were over just before it."""
PEAK_S = 2.0
"""As many as were wanted at once within this time."""
CALLS_LEAST = 2


class CallHold:
    """Of one job of calls. Times are monotonic seconds of the caller."""

    __slots__ = ("_before", "_calls", "_peak", "_peak_s", "_since_s", "_until_s")

    def __init__(self) -> None:
        self._calls = 0
        self._before = 0
        """Calls before those that came one after the other."""
        self._since_s = self._until_s = self._peak_s = -1e9
        self._peak = 0

    def look(self, calls: int, want: int, now: float) -> int:
        """How many slots it wants, or keeps. calls: how many have come so far; want: those that are to run now."""
        if want or calls != self._calls:
            if now >= self._until_s:
                self._since_s, self._before = now, self._calls
            self._calls, self._until_s = calls, now + (WANTED_S if want else CAME_S)
        if want >= self._peak or now - self._peak_s >= PEAK_S:
            self._peak, self._peak_s = max(1, want), now
        if now >= self._until_s:
            return 0
        is_one = calls - self._before < CALLS_LEAST and self._until_s - self._since_s < CAME_S + WANTED_S
        return want if is_one else max(want, self._peak)
