"""When an agent beats: as the leader asks, more seldom at rest, and soon when work has come or nobody answers."""

from __future__ import annotations

import pytest

from fallow.agent.rhythm import AWAY_AFTER_INTERVALS, AWAY_INTERVALS, EARLY, Rhythm
from fallow.core.presence import LEAST_JITTER, REST_INTERVAL_S
from fallow.wire.messages import BEAT_INTERVAL_S, BeatAck


def ack(seq: int, epoch: int = 1, interval_s: float = 1.0) -> BeatAck:
    return BeatAck(seq=seq, want_spec=False, drain=False, epoch=epoch, interval_s=interval_s)


@pytest.fixture
def rhythm() -> Rhythm:
    made = Rhythm(100.0)
    made.acknowledged(ack(0), 100.0)
    return made


def test_at_rest_a_node_beats_more_seldom_and_says_so_before(rhythm: Rhythm) -> None:
    rhythm.beats(100.0)
    assert rhythm.is_due(100.0 + BEAT_INTERVAL_S)
    rhythm.rests(True, 100.5)
    rhythm.acknowledged(ack(1), 100.6)
    assert rhythm.is_due(100.0 + BEAT_INTERVAL_S), "what the last beat promised is kept"
    rhythm.beats(101.0)
    assert rhythm.interval_s == REST_INTERVAL_S
    rhythm.acknowledged(ack(2), 101.1)
    assert not rhythm.is_due(101.0 + REST_INTERVAL_S * LEAST_JITTER - 0.01)
    assert rhythm.is_due(101.0 + REST_INTERVAL_S)
    assert rhythm.wait_s(101.0) >= REST_INTERVAL_S * LEAST_JITTER - 0.01


def test_at_rest_a_beat_that_nobody_answers_comes_again_soon_and_what_was_said_meanwhile_too(rhythm: Rhythm) -> None:
    rhythm.rests(True, 100.0)
    rhythm.beats(100.0)
    assert rhythm.wait_s(100.0) == BEAT_INTERVAL_S
    rhythm.beats(101.0)
    assert not rhythm.is_away(101.0)
    assert rhythm.is_away(100.1 + AWAY_AFTER_INTERVALS)
    rhythm.beats(102.0)
    assert rhythm.wait_s(102.0) <= BEAT_INTERVAL_S
    assert rhythm.acknowledged(ack(4), 102.5), "it was away"
    assert rhythm.wait_s(102.5) > REST_INTERVAL_S * LEAST_JITTER - 1.0
    assert not rhythm.acknowledged(ack(4), 105.0)
    assert not rhythm.is_away(111.0), "a rest is no silence of the leader's"


def test_work_brings_the_next_beat_nearer(rhythm: Rhythm) -> None:
    rhythm.rests(True, 100.0)
    rhythm.beats(100.0)
    rhythm.acknowledged(ack(1), 100.05)
    rhythm.rests(False, 100.1)
    assert rhythm.interval_s == BEAT_INTERVAL_S
    assert rhythm.is_due(100.1 + BEAT_INTERVAL_S)


def test_at_work_a_leader_that_does_not_answer_is_asked_more_often(rhythm: Rhythm) -> None:
    for second in range(3):
        rhythm.beats(100.0 + second)
    assert rhythm.is_away(102.0)
    assert rhythm.is_due(102.0 + AWAY_INTERVALS * BEAT_INTERVAL_S)
    assert rhythm.acknowledged(ack(3), 102.1)
    rhythm.beats(103.0)
    assert not rhythm.is_away(103.0 + BEAT_INTERVAL_S)
    assert not rhythm.is_due(103.0 + (LEAST_JITTER - EARLY) * BEAT_INTERVAL_S - 0.01)
    assert rhythm.is_due(103.0 + (1.0 - EARLY) * BEAT_INTERVAL_S), "it goes with what is sent anyway"
    assert rhythm.wait_s(103.0) >= LEAST_JITTER * BEAT_INTERVAL_S, "and wakes nobody before"
    assert rhythm.acknowledged(ack(4, epoch=2), 103.1), "another leads"


def test_a_new_leader_hears_soon_of_who_is_at_rest(rhythm: Rhythm) -> None:
    rhythm.rests(True, 100.0)
    rhythm.beats(100.0)
    rhythm.acknowledged(ack(1), 100.05)
    assert rhythm.is_awaited(101.0) <= AWAY_INTERVALS * BEAT_INTERVAL_S


def test_a_leader_that_asks_for_less_is_heard_at_rest_too(rhythm: Rhythm) -> None:
    rhythm.acknowledged(ack(1, interval_s=12.0), 100.0)
    rhythm.rests(True, 100.0)
    assert rhythm.interval_s == 12.0
