"""One timer for all that an agent looks at now and then: what is done together wakes a machine at rest once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger("fallow.agent")

PULSE_S = 3.0
"""At rest; who needs it more often says so."""
LEAST_S = 0.005


class Pulse:
    """Calls everyone who was added, in turn, and waits as long as the most impatient of them wants, PULSE_S at most.
    Use from one event loop."""

    def __init__(self) -> None:
        self._members: list[Callable[[], float | None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, member: Callable[[], float | None]) -> None:
        """From the next pulse on. It returns within how many seconds it wants the next one; None: it does not care."""
        self._members.append(member)
        self.within(PULSE_S)

    def remove(self, member: Callable[[], float | None]) -> None:
        """Nothing where it is not there."""
        if member in self._members:
            self._members.remove(member)
        if not self._members:
            self.close()

    def within(self, wait_s: float) -> None:
        """Have the next pulse so soon, or sooner."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + wait_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(max(LEAST_S, wait_s), self._beat)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = None
        wait_s = PULSE_S
        for member in list(self._members):
            try:
                wanted_s = member()
            except Exception:
                # What one of them meets must not stop the others.
                log.exception("the agent's timer met an error")
                continue
            if wanted_s is not None:
                wait_s = min(wait_s, wanted_s)
        if self._members:
            self.within(wait_s)
