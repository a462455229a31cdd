"""How often nodes are to say that they are there, and when their silence means that they are not."""

from __future__ import annotations

LEAST_INTERVAL_S = 1.0
MOST_INTERVAL_S = 30.0
BEATS_PER_S = 400.0
"""What one coordinator takes of heartbeats, with no more than a tenth of a processor."""
LOST_AFTER_INTERVALS = 6.0
LEAST_JITTER = 0.85
"""A node waits a share of the interval between this and 1, so that nodes which began together spread."""


def beat_interval_s(nodes: int) -> float:
    """Seconds between two beats of a node, for a pool of so many."""
    return min(MOST_INTERVAL_S, max(LEAST_INTERVAL_S, nodes / BEATS_PER_S))


def lost_after_s(interval_s: float) -> float:
    """Seconds of silence after which a node that was to beat every `interval_s` is lost."""
    return LOST_AFTER_INTERVALS * min(MOST_INTERVAL_S, max(LEAST_INTERVAL_S, interval_s))
