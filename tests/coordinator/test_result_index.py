"""Recorded results by index, where some were forgotten before."""

from __future__ import annotations

from fallow.coordinator.result_index import Recorded, ResultIndex
from fallow.model.ids import Digest
from fallow.model.job import Blob


def test_those_within_a_range_are_found_whatever_is_missing_between_them() -> None:
    index = ResultIndex()
    for seq, (start, stop) in enumerate([(0, 1), (1, 3), (4, 5), (7, 9)]):
        index.add(Recorded(seq, start, stop, start, Blob(Digest("0" * 64), 1, b"x")))
    assert [(entry.start, entry.stop) for entry in index.within(0, 8)] == [(0, 1), (1, 3), (4, 5)]
    for entry in index.within(0, 2):
        index.drop(entry)
    assert [(entry.start, entry.stop) for entry in index.within(0, 9)] == [(1, 3), (4, 5), (7, 9)]
    for entry in index.within(0, 9):
        index.drop(entry)
    assert len(index) == 0
    assert index.bytes == 0
    assert index.within(0, 9) == []
