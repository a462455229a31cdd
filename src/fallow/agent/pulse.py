"""One timer for all that an agent looks at now and then: what is done together wakes a machine at rest once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf

log = logging.getLogger("fallow.agent")

PULSE_S = 30.0
"""At rest; who needs it more often says so."""
LEAST_S = 0.005
RIDE_S = 0.3
"""A pulse that is due so soon may as well come now, if the agent is awake and the last one is twice as long ago."""

Member = Callable[[], float | None]


class Pulse:
    """Calls everyone who was added, in turn, and waits as long as the most impatient of them wants, PULSE_S at most.
    Use from one event loop."""

    def __init__(self) -> None:
        self._due: dict[Member, float] = {}
        """When each of the members wants the next one, on the loop's clock."""
        self._called_for = inf
        """The same of others."""
        self._beat_s = -inf
        """When the last pulse was."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, member: Member) -> None:
        """From the next pulse on. It returns within how many seconds it wants the next one; None: it does not care."""
        self._due[member] = asyncio.get_running_loop().time() + PULSE_S
        self._set_timer()

    def remove(self, member: Member) -> None:
        """Nothing where it is not there."""
        self._due.pop(member, None)
        if not self._due:
            self.close()

    def within(self, wait_s: float) -> None:
        """Have the next pulse so soon, or sooner."""
        self._called_for = min(self._called_for, asyncio.get_running_loop().time() + wait_s)
        self._set_timer()

    def wants(self, member: Member, wait_s: float) -> None:
        """The member has changed its mind: sooner, or later. Nothing where it is not there."""
        if member in self._due:
            self._due[member] = asyncio.get_running_loop().time() + wait_s
            self._set_timer()

    def ride(self) -> None:
        """The agent is awake: a pulse that would wake it soon comes now."""
        if self._timer is not None:
            now = asyncio.get_running_loop().time()
            if self._timer.when() - now <= RIDE_S and now - self._beat_s >= 2 * RIDE_S:
                self._timer.cancel()
                self._beat()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        when = max(loop.time() + LEAST_S, min(self._called_for, *self._due.values(), inf))
        if self._timer is not None:
            if self._timer.when() == when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._beat)

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, self._beat_s = None, loop.time()
        self._called_for = inf
        for member in list(self._due):
            try:
                wanted_s = member()
            except Exception:
                # What one of them meets must not stop the others.
                log.exception("the agent's timer met an error")
                wanted_s = None
            if member in self._due:
                self._due[member] = loop.time() + (PULSE_S if wanted_s is None else min(PULSE_S, wanted_s))
        if self._due:
            self._set_timer()
