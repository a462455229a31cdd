"""Keeps Python's garbage collector from looking through what thousands of nodes are made of: none of that is a cycle,
and an object costs it some ten microseconds where all the rest has pushed it out of the processor's caches."""

from __future__ import annotations

import gc

THRESHOLDS = (5_000, 20, 40)
GROWTH = 1.05
GROWTH_NODES = 200
SETTLES_S = 120.0
"""What a job makes for new nodes follows them within so long."""
MOST_LOTS = 5
"""Lots of young objects (of THRESHOLDS[0] each) that are set aside before the collector turns to them as a whole."""


class Collector:
    """`start` it when the coordinator has started, and `tick` it now and then."""

    def __init__(self) -> None:
        self._nodes = 0
        """The most that were set aside."""
        self._until = 0.0

    def start(self) -> None:
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)

    def tick(self, nodes: int, now: float) -> None:
        """`nodes`: how many this coordinator knows. While they become more, what has come is set aside for good: it
        goes with its last reference all the same. (Cycles among it stay: of jobs that end in these two minutes.)"""
        if nodes > self._nodes * GROWTH + GROWTH_NODES:
            self._nodes = nodes
            self._until = now + SETTLES_S
            gc.freeze()
        elif now < self._until and gc.get_count()[1] >= MOST_LOTS:
            gc.freeze()
