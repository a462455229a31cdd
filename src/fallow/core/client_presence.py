"""Whether the script of an attached job is gone for good, or only cut off.

A process that ends, however it ends, closes its connection at once: nobody listens to its subject any more. So does a
cut, but later: the message server gives a connection up that was silent for presence.SERVER_PING_S and longer. Hence a
script is gone that was heard of a moment before nobody listened to it, and that has not come back within GONE_S (a
connection may break and be made anew). One that is cut off keeps the longer time that a silent client has.
"""

from __future__ import annotations

ASK_AFTER_S = 1.5
"""A client that is silent for so long is asked whether it is there. (With its owner's next turn: every 2 s or so, and
so often enough for CLOSED_WITHIN_S.)"""
CLOSED_WITHIN_S = 3.5
"""Nobody listens so soon after it was heard of: its connection was closed, and not given up."""
GONE_S = 10.0


class ClientPresence:
    """Of one client. Times are monotonic seconds of the caller."""

    def __init__(self, mark_s: float) -> None:
        self._mark_s = mark_s
        """When its owner last heard of it: at first that may be no more than when the owner took the job up."""
        self._heard_s: float | None = None
        self._asked_s = mark_s
        self._closed_s: float | None = None

    def heard(self, at_s: float) -> None:
        """Something came from it then (the same time may be told again)."""
        if at_s > self._mark_s:
            self._mark_s = self._heard_s = at_s
            self._closed_s = None

    def is_to_be_asked(self, now: float) -> bool:
        """If so it counts as asked."""
        if now - max(self._asked_s, self._mark_s) < ASK_AFTER_S:
            return False
        self._asked_s = now
        return True

    def nobody_listens(self, now: float, has_listened: bool) -> None:
        """The answer of the message server. `has_listened`: the owner itself was connected for CLOSED_WITHIN_S."""
        was_just_there = self._heard_s is not None and now - self._heard_s <= CLOSED_WITHIN_S
        if self._closed_s is None and has_listened and was_just_there:
            self._closed_s = now

    def listens(self) -> None:
        """Its connection is there, whether it answers or not."""
        self._closed_s = None

    def is_gone(self, now: float) -> bool:
        return self._closed_s is not None and now - self._closed_s >= GONE_S
