"""What a node does beside its work."""

from __future__ import annotations

import pytest

from fallow.agent.upkeep import MEASURE_AT_LAST_S, MEASURE_LOAD_PERCENT, may_measure

SOON, LATE = 10.0, MEASURE_AT_LAST_S
IDLE, LOADED = 1.0, MEASURE_LOAD_PERCENT + 1.0


@pytest.mark.parametrize(
    ("waited_s", "is_at_work", "is_busy", "load_percent", "may"),
    [
        (SOON, False, False, IDLE, True),
        (SOON, False, False, LOADED, False),  # another program's load would look like slowness
        (SOON, True, False, IDLE, False),  # the job may begin its next task at any moment
        (SOON, True, True, LOADED, False),
        (LATE, True, False, LOADED, True),  # a number that is too low is better than none
        (LATE, True, True, IDLE, False),  # but never beside a task
    ],
)
def test_a_machine_is_measured_where_it_shows_what_it_can(
    waited_s: float, is_at_work: bool, is_busy: bool, load_percent: float, may: bool
) -> None:
    assert may_measure(waited_s, is_at_work, is_busy, load_percent) is may
