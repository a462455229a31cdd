"""Beats and leases for crowds: what a coordinator is asked to take stays within bounds as nodes grow."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fallow.core.presence import BEATS_PER_S, MOST_INTERVAL_S, beat_interval_s, lost_after_s
from fallow.core.sizing import MAP_TARGET_S, budget_s, target_s
from fallow.wire.messages import BEAT_INTERVAL_S, NODE_LOST_AFTER_S


@pytest.mark.parametrize("nodes", [0, 1, 300, 400])
def test_a_small_pool_beats_every_second(nodes: int) -> None:
    assert beat_interval_s(nodes) == BEAT_INTERVAL_S
    assert lost_after_s(beat_interval_s(nodes)) == NODE_LOST_AFTER_S


def test_beats_of_a_large_pool_stay_within_what_one_coordinator_takes() -> None:
    for nodes in (1_000, 5_000, 10_000, 12_000):
        assert nodes / beat_interval_s(nodes) == pytest.approx(BEATS_PER_S)
    assert beat_interval_s(1_000_000) == MOST_INTERVAL_S


def test_what_a_node_says_of_its_beats_is_bounded() -> None:
    assert lost_after_s(1e9) == 6 * MOST_INTERVAL_S
    assert lost_after_s(-1.0) == NODE_LOST_AFTER_S


def test_few_slots_get_leases_of_the_usual_length_whatever_their_number() -> None:
    assert {target_s(MAP_TARGET_S, 600, ordinal) for ordinal in range(50)} == {MAP_TARGET_S}


def test_leases_of_many_slots_are_longer_and_of_different_lengths() -> None:
    lengths = [target_s(MAP_TARGET_S, 10_000, ordinal) for ordinal in range(1_000)]
    assert sum(lengths) / len(lengths) == pytest.approx(25.0, rel=0.01)
    ordered = sorted(lengths)
    assert ordered[0] >= 0.75 * 25.0
    assert ordered[-1] <= 1.25 * 25.0
    gaps = [later - earlier for earlier, later in pairwise(ordered)]
    assert max(gaps) < 4 * 12.5 / 1_000, "hand-ins of slots that began together come in waves"


def test_a_lease_is_not_cut_short_of_what_it_was_to_be() -> None:
    assert budget_s(0.0) == budget_s(1.5) == 2.0
    assert budget_s(25.0) > 25.0
