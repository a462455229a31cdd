"""The interval set against a plain set of integers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fallow.core.intervals import IntervalSet
from fallow.core.remainder import Remainder

piece = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))
step = st.tuples(st.sampled_from(["add", "remove", "pop"]), piece)


def numbers(pieces: object) -> set[int]:
    return {i for a, b in pieces for i in range(a, b)}  # type: ignore[attr-defined]


@given(st.lists(step, max_size=40), piece)
def test_like_a_set(steps: list[tuple[str, tuple[int, int]]], probe: tuple[int, int]) -> None:
    mine, plain = IntervalSet(), set[int]()
    for what, (start, stop) in steps:
        span = set(range(start, stop))
        if what == "add":
            assert numbers(mine.add(start, stop)) == span - plain
            plain |= span
        elif what == "remove":
            assert numbers(mine.remove(start, stop)) == span & plain
            plain -= span
        else:
            taken = mine.pop_first(stop - start)
            assert numbers([taken] if taken else []) <= plain
            plain -= numbers([taken] if taken else [])
        pieces = mine.intervals()
        assert numbers(pieces) == plain
        assert len(mine) == len(plain)
        assert all(a < b for a, b in pieces)
        assert all(left[1] < right[0] for left, right in itertools.pairwise(pieces)), "not merged"
    span = set(range(*probe))
    assert numbers(mine.overlap(*probe)) == span & plain
    assert numbers(mine.gaps(*probe)) == span - plain
    assert mine.covers(*probe) == (span <= plain)
    assert mine.intersects(*probe) == bool(span & plain)
    assert all((i in mine) == (i in plain) for i in range(75))


@given(st.lists(piece, max_size=20), st.randoms())
def test_merging_is_commutative_and_idempotent(pieces: list[tuple[int, int]], random: object) -> None:
    shuffled = list(pieces)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert IntervalSet(pieces) == IntervalSet(shuffled + pieces)


@given(st.lists(piece.filter(lambda p: p[0] < p[1]), min_size=1, max_size=4), st.lists(piece, max_size=20), piece)
def test_what_is_left_of_a_range_is_like_a_set(
    ranges: list[tuple[int, int]], gone: list[tuple[int, int]], probe: tuple[int, int]
) -> None:
    mine = Remainder.of(IntervalSet(ranges).intervals())
    plain = numbers(ranges)
    span = set(range(*probe))
    for start, stop in [(0, 0), *gone]:
        taken = set(range(start, stop)) & plain
        assert numbers(mine.remove(start, stop)) == taken
        plain -= taken
        assert numbers(mine.intervals()) == plain
        assert all(a < b for a, b in mine.intervals())
        assert (len(mine), bool(mine)) == (len(plain), bool(plain))
        assert numbers(mine.overlap(*probe)) == span & plain
        assert mine.covers(*probe) == (span <= plain)
        assert (probe[0] in mine) == (probe[0] in plain)
