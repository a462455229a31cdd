"""How often nodes are to say that they are there, and when their silence means that they are not."""

from __future__ import annotations

LEAST_INTERVAL_S = 1.0
MOST_INTERVAL_S = 30.0
BEATS_PER_S = 1_000.0
"""What one coordinator takes of heartbeats, with no more than a tenth of a processor: one costs it 87 microseconds,
what owners and the node are told included (`python -m bench agents --agents 1000`, with this at 100 and at 1,000)."""
LOST_AFTER_INTERVALS = 2.0
LOST_AFTER_MORE_S = 4.0
"""One beat may be lost, and the next be late by so much. A node that is given up wrongly costs a second run of what it
does, no more; one that is dead keeps its work from others for all that time."""
QUIET_INTERVALS = 2.0
QUIET_MORE_S = 0.2
"""A node that is silent for so long may be gone: it gets no new work, and single calls that it has are run elsewhere
too. Nothing is taken from it before it is lost."""
QUIET_LEAST_S = QUIET_INTERVALS * LEAST_INTERVAL_S + QUIET_MORE_S
REST_INTERVAL_S = 10.0
"""At least, between beats of a node on which nothing of the pool's runs: nobody waits for it, and each beat wakes a
machine that is its owner's. It answers work by a beat, and says a beat again that nobody answers."""
SERVER_PING_S = REST_INTERVAL_S + 1.0
"""The message server asks who is silent for so long, at times that are so far apart, and gives up whoever has not
answered at the next of them: who speaks as often as a node at rest is never asked."""
GIVEN_UP_AFTER_S = 3 * SERVER_PING_S
"""At most so long after it was last heard the message server gives up who is stopped or cut off."""
AWAITED_S = 1.5
"""A node at rest that was given work, and has not answered for so long, may be gone."""
LEAST_JITTER = 0.85
"""A node waits a share of the interval between this and 1, so that nodes which began together spread."""


def beat_interval_s(nodes: int) -> float:
    """Seconds between two beats of a node, for a pool of so many."""
    return min(MOST_INTERVAL_S, max(LEAST_INTERVAL_S, nodes / BEATS_PER_S))


def quiet_after_s(interval_s: float, rests: bool = False) -> float:
    """Seconds of silence after which a node that was to beat every `interval_s` may be gone. `rests`: it does so
    because nothing runs there; a beat that was lost comes again within a second, and is not waited for twice."""
    if rests:
        return min(MOST_INTERVAL_S, interval_s) + QUIET_LEAST_S
    return QUIET_INTERVALS * min(MOST_INTERVAL_S, max(LEAST_INTERVAL_S, interval_s)) + QUIET_MORE_S


def lost_after_s(interval_s: float, rests: bool = False) -> float:
    """Seconds of silence after which a node that was to beat every `interval_s` is lost; `rests` as above."""
    if rests:
        return min(MOST_INTERVAL_S, interval_s) + LOST_AFTER_INTERVALS * LEAST_INTERVAL_S + LOST_AFTER_MORE_S
    return LOST_AFTER_INTERVALS * min(MOST_INTERVAL_S, max(LEAST_INTERVAL_S, interval_s)) + LOST_AFTER_MORE_S
