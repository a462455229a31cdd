"""What people write with units is read, and what is written is read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fallow.core import quantities as q
from fallow.model.lending import Hours


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (q.read_size, "20 GB", 20 * 10**9),
        (q.read_size, "512MiB", 512 << 20),
        (q.read_size, "1,5 tb", 1_500 * 10**9),
        (q.read_size, "0", 0),
        (q.read_rate, "5 MB/s", 5_000_000),
        (q.read_rate, "40 Mbit/s", 5_000_000),
        (q.read_time, "3 min", 180),
        (q.read_time, "2h", 7200),
        (q.read_time, "1 h 30 min", 5400),
        (q.read_share, "25 %", 0.25),
        (q.read_degrees, "85 °C", 85),
        (q.read_degrees, "185 F", 85),
        (q.read_watts, "0.2 kW", 200),
        (q.read_hours, "mon-fri 18:00-08:00", Hours((0, 1, 2, 3, 4), 1080, 480)),
        (q.read_hours, "fri-mon 00:00-24:00", Hours((0, 4, 5, 6), 0, 1440)),
        (q.read_hours, "22:00-06:00", Hours(tuple(range(7)), 1320, 360)),
    ],
)
def test_reads(read: Callable[[str], Any], text: str, value: Any) -> None:
    assert read(text) == pytest.approx(value) if isinstance(value, float) else read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (q.read_size, "20", "there is no unit"),
        (q.read_size, "20 GBs", "'gbs' is no such unit"),
        (q.read_size, "-1 GB", "a size with its unit"),
        (q.read_rate, "5 MB", "a rate with its unit"),
        (q.read_time, "3", "there is no unit"),
        (q.read_time, "soon", "a time with its unit"),
        (q.read_share, "120 %", "between"),
        (q.read_share, "0.5", "between"),
        (q.read_degrees, "85", "there is no unit"),
        (q.read_watts, "200 J", "'j' is no such unit"),
        (q.read_hours, "someday 10:00-11:00", "the days are mon"),
        (q.read_hours, "10:00-10:00", "two different times"),
        (q.read_hours, "10:00-25:00", "between 00:00 and 24:00"),
    ],
)
def test_refuses_in_words(read: Callable[[str], Any], text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(text)


@given(st.integers(0, 1 << 50))
def test_sizes_are_read_back(size: int) -> None:
    assert q.read_size(q.write_size(size)) == size
    assert q.read_rate(q.write_rate(size)) == size


@given(st.integers(0, 10**8))
def test_times_are_read_back(seconds: int) -> None:
    assert q.read_time(q.write_time(seconds)) == seconds


@given(
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(0, 1440),
)
def test_hours_are_read_back(days: set[int], start: int, stop: int) -> None:
    if start == stop:
        return
    hours = Hours(tuple(sorted(days)), start, stop)
    assert q.read_hours(q.write_hours(hours)) == hours
