"""When an agent beats, and whether a coordinator answers."""

from __future__ import annotations

import random

from fallow.core.presence import LEAST_JITTER, MOST_INTERVAL_S, REST_INTERVAL_S
from fallow.wire.messages import BEAT_INTERVAL_S, BeatAck

AWAY_AFTER_INTERVALS = 1.5
"""The first of several beats is unanswered for so long: the coordinator was away, and what was sent meanwhile is sent
again when it is back. Of what the leader asked for."""
AWAY_INTERVALS = 0.25
"""The pause between beats then, after the first one on a new connection, and until a new leader hears of this node."""
EARLY = 0.3
"""A beat may come so much of its interval early, with something else that is sent."""
FIRST_BEATS_S = 0.05
"""Until a coordinator has answered: it may start just now, and a cold start waits for it."""


class Rhythm:
    """`now`, everywhere: seconds on the caller's monotonic clock."""

    def __init__(self, now: float) -> None:
        self.seq = 0
        """Of the last beat."""
        self.asked_s = BEAT_INTERVAL_S
        """What the leader asked for."""
        self.at_rest = False
        """Nothing of the pool's runs here, nor is about to."""
        self.was_heard = False
        """A coordinator has answered at least once."""
        self._beat_s = now
        """When the last beat was sent, and how soon it said that the next one comes."""
        self._promised_s = BEAT_INTERVAL_S
        self._next_s = 0.0
        self._unanswered_s: float | None = now
        """Since when no beat was answered; None: the last one was."""
        self._epoch = 0

    @property
    def interval_s(self) -> float:
        """At most so long after a beat the next one comes."""
        return max(self.asked_s, REST_INTERVAL_S) if self.at_rest else self.asked_s

    def beats(self, now: float) -> int:
        """A beat is sent now; returns its number."""
        self.seq += 1
        self._beat_s, self._promised_s = now, self.interval_s
        if self._unanswered_s is None:
            self._unanswered_s = now
        self._next_s = now + self._pause_s(now)
        return self.seq

    def rests(self, at_rest: bool, now: float) -> None:
        """Whether anybody may wait for what runs here. Work that begins after a rest is not without a beat for long."""
        if self.at_rest and not at_rest:
            self._next_s = min(self._next_s, now + self.asked_s)
        self.at_rest = at_rest

    def is_due(self, now: float) -> bool:
        """Or nearly, at work: it goes with whatever woke the agent."""
        return now >= self._next_s - (0.0 if self.at_rest or not self.was_heard else EARLY * self.asked_s)

    def wait_s(self, now: float) -> float:
        """Time until the next look: at most BEAT_INTERVAL_S unless at rest."""
        wait_s = max(0.0, self._next_s - now)
        return wait_s if self.at_rest else min(BEAT_INTERVAL_S, wait_s)

    def hurry(self, now: float) -> float:
        """The last beat may have been lost: the next one comes soon. Returns as wait_s."""
        self._next_s = min(self._next_s, now + AWAY_INTERVALS * self.asked_s)
        return self.wait_s(now)

    def is_awaited(self, now: float) -> float:
        """A new leader waits for a word of every node: soon, but not of all at once. Returns as wait_s."""
        self._next_s = min(self._next_s, now + AWAY_INTERVALS * self.asked_s * random.random())
        return self.wait_s(now)

    def is_away(self, now: float) -> bool:
        """The coordinator has not answered of late."""
        return self._unanswered_s is not None and now - self._unanswered_s > AWAY_AFTER_INTERVALS * self.asked_s

    def _pause_s(self, now: float) -> float:
        """Time from this beat to the next. While no coordinator answers, one may appear at any moment: it is to hear
        of this node soon. At rest the pause is to be that of work unless this beat is answered."""
        if not self.was_heard:
            return min(BEAT_INTERVAL_S, FIRST_BEATS_S * 1.1**self.seq)
        if self.at_rest:
            return self.asked_s
        interval_s = self.asked_s * (AWAY_INTERVALS if self.is_away(now) else 1.0)
        return interval_s * random.uniform(LEAST_JITTER, 1.0)

    def acknowledged(self, ack: BeatAck, now: float) -> bool:
        """A coordinator answered. Returns whether it was away or is another one now: then what it may have missed is
        to be sent again."""
        was_away = self.is_away(now)
        is_new = ack.epoch > self._epoch > 0
        self.asked_s = min(MOST_INTERVAL_S, max(BEAT_INTERVAL_S, ack.interval_s))
        if self.at_rest and self._unanswered_s is not None:
            self._next_s = self._beat_s + self._promised_s * random.uniform(LEAST_JITTER, 1.0)
        self._next_s = min(self._next_s, now + self.interval_s)
        self._unanswered_s = None
        self.was_heard = True
        self._epoch = max(self._epoch, ack.epoch)
        return was_away or is_new
