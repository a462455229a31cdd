"""Looks at whether anybody speaks of what was sent: it may be lost, or whoever it was sent to be gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fallow.sdk.transport import LoopThread

QUIET_S = 0.4
"""A call that nobody has spoken of for so long may be lost: it is asked about, soon and then more seldom."""
MORE_SELDOM = 1.5
CLOCK_S = 0.001
"""A timer may be early by so much."""
QUIET_MOST_S = 2.0
"""From then on the client's tick is often enough."""


class Quiet:
    """`heard`: when somebody spoke last, by the loop's clock; `waits`: whether anything is waited for; `repair`: asks.
    One timer serves all calls of a function, so that a call costs a look at `is_armed`."""

    def __init__(
        self, thread: LoopThread, heard: Callable[[], float], waits: Callable[[], bool], repair: Callable[[], None]
    ) -> None:
        self._thread = thread
        self._heard = heard
        self._waits = waits
        self._repair = repair
        self.is_armed = False

    def arm(self) -> None:
        """From any thread: something was sent."""
        self.is_armed = True
        self._thread.call(self._wait, QUIET_S, QUIET_S)

    def _wait(self, quiet_s: float, wait_s: float) -> None:
        self._thread.loop.call_later(wait_s, self._look, quiet_s)

    def _look(self, quiet_s: float) -> None:
        if not self._waits():
            self.is_armed = False
            return
        silent_s = self._thread.loop.time() - self._heard()
        if silent_s < QUIET_S:
            quiet_s = QUIET_S
        wait_s = quiet_s - silent_s
        if wait_s <= CLOCK_S:
            self._repair()
            wait_s = quiet_s = quiet_s * MORE_SELDOM
        if quiet_s < QUIET_MOST_S:
            self._wait(quiet_s, wait_s)
        else:
            self.is_armed = False
