"""When an agent beats: as the leader asks, more seldom at rest, and soon when work has come."""

from __future__ import annotations

import pytest

from fallow.agent.rhythm import REST_INTERVAL_S, Rhythm
from fallow.core.presence import LEAST_JITTER
from fallow.wire.messages import BEAT_INTERVAL_S, BeatAck


@pytest.fixture
def rhythm() -> Rhythm:
    made = Rhythm(100.0)
    made.acknowledged(BeatAck(seq=0, want_spec=False, drain=False, epoch=1, interval_s=1.0), 100.0)
    return made


def test_at_rest_a_node_beats_more_seldom_and_says_so_before(rhythm: Rhythm) -> None:
    rhythm.beats(100.0)
    assert rhythm.is_due(100.0 + BEAT_INTERVAL_S)
    rhythm.rests(True, 100.5)
    assert rhythm.is_due(100.0 + BEAT_INTERVAL_S), "what the last beat promised is kept"
    rhythm.beats(101.0)
    assert rhythm.interval_s == REST_INTERVAL_S
    assert not rhythm.is_due(101.0 + REST_INTERVAL_S * LEAST_JITTER - 0.01)
    assert rhythm.is_due(101.0 + REST_INTERVAL_S)
    assert rhythm.wait_s(101.0) >= REST_INTERVAL_S * LEAST_JITTER - 0.01


def test_work_brings_the_next_beat_nearer(rhythm: Rhythm) -> None:
    rhythm.rests(True, 100.0)
    rhythm.beats(100.0)
    rhythm.rests(False, 100.1)
    assert rhythm.interval_s == BEAT_INTERVAL_S
    assert rhythm.is_due(100.1 + BEAT_INTERVAL_S)


def test_a_leader_that_asks_for_less_is_heard_at_rest_too(rhythm: Rhythm) -> None:
    rhythm.acknowledged(BeatAck(seq=1, want_spec=False, drain=False, epoch=1, interval_s=12.0), 100.0)
    rhythm.rests(True, 100.0)
    assert rhythm.interval_s == 12.0
