"""Results of a map share commits while all slots are busy; the first ones, large ones and awaited ones do not wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fallow.core.gathering import AT_ONCE_BYTES, MOST_S, RIPE, SHARE_OF_AGE, Gathering

BEGAN_S = 100.0


def test_the_first_results_wait_for_nothing() -> None:
    gathering = Gathering(BEGAN_S)
    assert gathering.wait_s(BEGAN_S + 0.1, 100, False) == 0.0
    assert gathering.wait_s(BEGAN_S + 0.102, 100, False) <= 0.102 * SHARE_OF_AGE


def test_later_ones_are_written_together_and_no_later_than_said() -> None:
    gathering, now = Gathering(BEGAN_S), BEGAN_S + 60.0
    assert gathering.wait_s(now, 100, False) == pytest.approx(0.0)
    due = [now + after + gathering.wait_s(now + after, 100, False) for after in (0.1, 0.2, 0.3)]
    assert due == pytest.approx([now + MOST_S] * 3)
    later = now + MOST_S + 0.1
    assert later + gathering.wait_s(later, 100, False) == pytest.approx(now + 2 * MOST_S)


def test_one_that_comes_shortly_before_takes_along_what_waits() -> None:
    gathering, now = Gathering(BEGAN_S), BEGAN_S + 60.0
    gathering.wait_s(now, 100, False)
    assert gathering.wait_s(now + 0.1, 100, False) > 0.0
    assert gathering.wait_s(now + RIPE * MOST_S + 0.01, 100, False) == 0.0
    later = now + MOST_S + 0.01  # the time for which the first was to wait: it was written before
    assert gathering.wait_s(later, 100, False) > 0.0


def test_what_comes_after_a_quiet_while_is_written_at_once() -> None:
    gathering = Gathering(BEGAN_S)
    gathering.wait_s(BEGAN_S + 60.0, 100, False)
    assert gathering.wait_s(BEGAN_S + 60.0 + MOST_S, 100, False) == pytest.approx(0.0)


def test_large_results_and_those_that_an_idle_slot_may_need_do_not_wait() -> None:
    gathering, now = Gathering(BEGAN_S), BEGAN_S + 60.0
    gathering.wait_s(now, 100, False)
    assert gathering.wait_s(now + 0.1, 100, True) == 0.0
    assert gathering.wait_s(now + 0.1, AT_ONCE_BYTES, False) == 0.0
    assert gathering.wait_s(now + 0.15, 100, False) > 0.0


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.booleans()), min_size=1, max_size=60), st.floats(0.0, 1000.0))
def test_nothing_waits_for_longer_than_the_most_and_a_share_of_the_jobs_age(
    steps: list[tuple[float, bool]], age_s: float
) -> None:
    gathering, now, written_s, due_s = Gathering(BEGAN_S), BEGAN_S + age_s, 0.0, float("inf")
    for step_s, lacks_work in steps:
        now += step_s
        if now >= due_s:
            written_s, due_s = due_s, float("inf")
        wait_s = gathering.wait_s(now, 100, lacks_work)
        assert 0.0 <= wait_s <= min(MOST_S, SHARE_OF_AGE * (now - BEGAN_S)) + 1e-9
        if wait_s == 0.0:
            assert lacks_work or now - written_s >= RIPE * min(MOST_S, SHARE_OF_AGE * (now - BEGAN_S)) - 1e-9
            written_s, due_s = now, float("inf")
        else:
            assert now + wait_s <= due_s + 1e-9, "and what waits already does not wait for longer"
            due_s = min(due_s, now + wait_s)
