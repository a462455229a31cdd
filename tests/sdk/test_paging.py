"""How inputs are cut into pages, and how far submission runs ahead."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fallow.sdk.paging import (
    CALLS_WINDOW_LIMIT,
    PAGE_BYTES_AIM,
    PAGE_GROWTH,
    PAGE_ITEMS_LIMIT,
    RateWindow,
    Window,
    next_count,
    range_cuts,
)
from fallow.sdk.submit import WHOLE_SMALL_ITEMS_LIMIT, first_pages


def test_pages_grow_eightfold_up_to_the_limit() -> None:
    counts = [1]
    while counts[-1] < PAGE_ITEMS_LIMIT:
        counts.append(next_count(counts[-1], 1e-6 * counts[-1], 8 * counts[-1]))
    assert counts == [1, 8, 64, 512, 4096, 8192]


@given(st.integers(1, PAGE_ITEMS_LIMIT), st.floats(0, 100), st.integers(0, 1 << 32))
def test_pages_stay_within_bounds(count: int, took: float, size: int) -> None:
    wanted = next_count(count, took, size)
    assert 1 <= wanted <= min(PAGE_ITEMS_LIMIT, count * PAGE_GROWTH)
    if size:
        assert wanted == 1 or wanted * size <= PAGE_BYTES_AIM * count


def test_large_items_and_slow_iterables_get_short_pages() -> None:
    assert next_count(64, 0.0, 64 * PAGE_BYTES_AIM) == 1
    assert next_count(8, 8.0, 100) == 1
    assert next_count(8, 0.04, 100) == 4


@given(st.integers(0, 1 << 24), st.integers(0, 1 << 24), st.integers(1, 1 << 22))
def test_ranges_are_cut_without_gaps(start: int, length: int, page: int) -> None:
    page = max(page, length // 1000 + 1)
    cuts = list(range_cuts(start, start + length, page))
    at = start
    for low, high in cuts:
        assert low == at
        assert 0 < high - low <= page
        at = high
    assert at == start + length


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 500))), st.randoms())
def test_window_bounds_what_is_outstanding(pages: list[tuple[int, int]], random: object) -> None:
    window = Window(tasks=100, size=1000)
    outstanding: list[tuple[int, int]] = []
    for count, size in pages:
        while not window.admits(count, size):
            assert outstanding, "an empty window admits anything"
            done, _ = outstanding.pop(0)
            window.answered(done)
        window.submitted(count, size)
        outstanding.append((count, size))
        if len(outstanding) > 1:
            assert sum(c for c, _ in outstanding) <= 100
            assert sum(s for _, s in outstanding) <= 1000
    while outstanding:
        window.answered(outstanding.pop(0)[0])
    assert window.admits(1 << 30, 1 << 40)


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0.0001, 2.0)), max_size=200), st.integers(0, 64))
def test_call_window_stays_within_bounds(answers: list[tuple[int, float]], slots: int) -> None:
    window, now = RateWindow(slots), 100.0
    for count, took in answers:
        now += took
        window.answered(count, now, False)
        assert 2 * max(1, slots) <= window.size <= CALLS_WINDOW_LIMIT


def test_call_window_follows_the_rate() -> None:
    window, now = RateWindow(2), 100.0
    window.answered(1, now, False)
    for _ in range(100):
        now += 0.01
        window.answered(min(window.size, 300), now, False)
    assert 1200 <= window.size <= 1600  # 50 ms at 30,000 a second


def test_a_list_of_small_items_travels_with_its_job_and_nothing_large_is_encoded_in_vain() -> None:
    client: Any = None  # asked for nothing: what is small is put nowhere
    pages, total = first_pages(client, [0.5] * 400, 0)
    assert total == 400
    assert [(page.start, page.stop) for page in pages] == [(0, 400)]
    pages, total = first_pages(client, [bytes(1000)] * 400, 0)
    assert (pages, total) == ([], -1)
    pages, total = first_pages(client, [0.5, *[bytes(1000)] * 398, 0.5], 0)
    assert (pages, total) == ([], -1)
    assert first_pages(client, iter([1, 2]), 0) == ([], -1)
    assert first_pages(client, [0] * (WHOLE_SMALL_ITEMS_LIMIT + 1), 0) == ([], -1)
