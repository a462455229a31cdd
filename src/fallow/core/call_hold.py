"""Slots that are kept between the calls of a script that makes one after the other.

Between two calls its job wants nothing. A plan that is made just then would give its slot to a map, and the next call
would wait for a whole task of that. So the slots stay for a moment, unless there are too few for those that want one:
after the last call the others do without them for a second or two.
"""

from __future__ import annotations

KEPT_S = 0.9
"""So long after a plan that found that calls had come or run since the one before. (Plans come once a second or so.)"""
PEAK_S = 2.0
"""As many as were wanted at once within this time."""


class CallHold:
    """Of one job of calls. Times are monotonic seconds of the caller."""

    __slots__ = ("_calls", "_found_s", "_peak", "_peak_s", "_want")

    def __init__(self) -> None:
        self._calls = self._want = self._peak = 0
        self._found_s = self._peak_s = -1e9

    def look(self, calls: int, want: int, now: float) -> int:
        """How many slots it wants, or keeps. calls: how many have come so far; want: those that are to run now."""
        if want or self._want or calls != self._calls:
            self._found_s = now
        self._calls, self._want = calls, want
        if want >= self._peak or now - self._peak_s >= PEAK_S:
            self._peak, self._peak_s = max(1, want), now
        return max(want, self._peak) if now - self._found_s < KEPT_S else 0
