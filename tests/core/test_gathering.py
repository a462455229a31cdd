"""Results of a map share commits while all slots are busy; the first ones, large ones and awaited ones do not wait."""

from __future__ import annotations

import pytest

from fallow.core.gathering import AT_ONCE_BYTES, MOST_S, SHARE_OF_AGE, Gathering

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


def test_what_comes_after_a_quiet_while_is_written_at_once() -> None:
    gathering = Gathering(BEGAN_S)
    gathering.wait_s(BEGAN_S + 60.0, 100, False)
    assert gathering.wait_s(BEGAN_S + 60.0 + MOST_S, 100, False) == pytest.approx(0.0)


def test_large_results_and_those_that_an_idle_slot_may_need_do_not_wait() -> None:
    gathering, now = Gathering(BEGAN_S), BEGAN_S + 60.0
    gathering.wait_s(now, 100, False)
    assert gathering.wait_s(now + 0.1, 100, True) == 0.0
    assert gathering.wait_s(now + 0.1, AT_ONCE_BYTES, False) == 0.0
    assert gathering.wait_s(now + 0.1, 100, False) > 0.0
