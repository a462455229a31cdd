"""Messages that are late, lost and repeated, and zones that are cut off."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from fallow.sim.clock import Clock

REPEAT_LATENCIES = 51
"""A message that is repeated comes again within so many latencies."""


class Network:
    """Whoever sends learns from `send` whether the message is lost: a real sender would learn it by its timer, and the
    simulation draws that timer only then."""

    __slots__ = ("_clock", "_random", "cut", "duplicate", "latency_s", "loss", "lost", "sent")

    def __init__(self, clock: Clock, chance: Random, latency_s: float, loss: float, duplicate: float) -> None:
        self._clock = clock
        self._random = chance.random
        self.latency_s = latency_s
        self.loss = loss
        self.duplicate = duplicate
        self.cut: set[int] = set()
        """Zones of nodes that reach no coordinator."""
        self.sent = 0
        self.lost = 0

    def reaches(self, zone: int) -> bool:
        """Whether a message between a node in this zone and the coordinators arrives."""
        self.sent += 1
        if (self.cut and zone in self.cut) or self._random() < self.loss:
            self.lost += 1
            return False
        return True

    def send(self, zone: int, what: Callable[..., None], *args: Any) -> bool:
        """Between a node in this zone and the coordinators, either way. False: it never arrives."""
        return self.post(zone, what, args)

    def post(self, zone: int, what: Callable[..., None], args: tuple[Any, ...]) -> bool:
        """`send`, for arguments that are packed."""
        at = self.when(zone, what, args)
        if at is None:
            return False
        self._clock.put(at, what, args)
        return True

    def when(self, zone: int, what: Callable[..., None], args: tuple[Any, ...]) -> float | None:
        """When a message that is sent now arrives: the caller sees to that, and the network to repeats of it. None: it
        never arrives."""
        self.sent += 1
        chance, clock = self._random, self._clock
        if (self.cut and zone in self.cut) or chance() < self.loss:
            self.lost += 1
            return None
        if self.duplicate and chance() < self.duplicate:
            clock.put(clock.now + self.latency_s * (1 + (REPEAT_LATENCIES - 1) * chance()), what, args)
        return clock.now + self.latency_s * (0.5 + chance())
