"""A simulated card, processor and link stay within their limits, and work still gets done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fallow.core.bucket import Bucket, take, with_rate
from fallow.core.duty import PERIOD_S, SHORTEST_S, of_amount, of_temperature, slots_of_share, spells
from fallow.core.evict import Kept, over_limit, unused_since


@given(st.floats(60, 400), st.floats(20, 55), st.floats(150, 450))
def test_power_settles_just_under_the_limit(limit_w: float, idle_w: float, full_w: float) -> None:
    duty = 1.0
    for _ in range(60):
        duty = of_amount(duty, idle_w + duty * (full_w - idle_w), limit_w)
    drawn_w = idle_w + duty * (full_w - idle_w)
    assert drawn_w <= limit_w
    assert duty == 1.0 or drawn_w >= 0.85 * limit_w, "the limit is used"


def test_power_that_cannot_be_held_stops_the_work() -> None:
    duty = 1.0
    for _ in range(300):
        duty = of_amount(duty, 60 + duty * 200, 50)
    assert spells(duty) == (0.0, PERIOD_S)


@pytest.mark.parametrize("limit_c", [70.0, 80.0, 85.0])
def test_a_card_does_not_get_hotter_than_its_limit_for_long(limit_c: float) -> None:
    heat_c, duty, hottest_late = 40.0, 1.0, 0.0
    for second in range(3600):
        # 2 degrees a second at full work, cooling by Newton's law towards 30.
        heat_c += 2.0 * duty - 0.03 * (heat_c - 30.0)
        duty = of_temperature(duty, heat_c, limit_c)
        if second > 600:
            hottest_late = max(hottest_late, heat_c)
    assert hottest_late <= limit_c + 2.0
    assert duty > 0.2, "it still works"


def test_unknown_readings() -> None:
    assert of_amount(0.4, None, 100) == 0.4
    assert of_temperature(0.5, None, 80) < 0.5
    assert of_temperature(0.9, 90, 80) == 0.0
    assert of_amount(0.3, 500, 0) == of_temperature(0.3, 500, 0) == 1.0


@given(st.floats(0, 1))
def test_spells_fill_the_period(duty: float) -> None:
    work_s, rest_s = spells(duty)
    assert work_s + rest_s == pytest.approx(PERIOD_S)
    assert work_s == 0 or work_s >= SHORTEST_S
    assert abs(work_s - duty * PERIOD_S) <= SHORTEST_S


def test_slots_of_a_share() -> None:
    assert slots_of_share(0.0, 8, 8) == 8
    assert slots_of_share(0.5, 8, 8) == 4
    assert slots_of_share(0.3, 8, 8) == 3
    assert slots_of_share(0.01, 2, 2) == 1
    assert slots_of_share(0.5, 8, 2) == 2


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200), st.floats(1_000, 1e6))
def test_a_bucket_holds_its_rate(sizes: list[int], rate: float) -> None:
    bucket, now = Bucket(rate), 100.0
    for size in sizes:
        bucket, wait_s = take(bucket, size, now)
        now += wait_s
    assert sum(sizes) <= (now - 100.0) * rate + 0.25 * rate + max(sizes) + 1


def test_a_bucket_shares_fairly_and_bears_clocks_that_go_back() -> None:
    bucket, first = take(Bucket(100.0, 0.0, 10.0), 100, 10.0)
    bucket, second = take(bucket, 100, 10.0)
    assert (first, second) == (1.0, 2.0)
    bucket, third = take(bucket, 100, 5.0)
    assert third == 3.0
    assert take(with_rate(bucket, 0.0), 10**9, 10.0)[1] == 0.0


def kept(name: str, size: int, used: float, in_use: bool = False) -> Kept:
    return Kept("data", name, f"/cache/{name}", size, used, in_use)


def test_the_longest_unused_goes_first_and_never_what_is_in_use() -> None:
    things = [kept("new", 10, 30), kept("old", 10, 10), kept("used", 10, 1, True), kept("middle", 10, 20)]
    assert [one.name for one in over_limit(things, 0, 25)] == ["old", "middle"]
    assert [one.name for one in over_limit(things, 15, 25)] == ["old", "middle", "new"]
    assert over_limit(things, 0, 0) == []
    assert [one.name for one in unused_since(things, 20)] == ["old", "middle"]
