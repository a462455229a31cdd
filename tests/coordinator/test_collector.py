"""What thousands of nodes are made of is set aside from the garbage collector; what a small pool has is not."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fallow.coordinator.collector import GROWTH_NODES, MOST_LOTS, SETTLES_S, THRESHOLDS, Collector


@pytest.fixture(autouse=True)
def collector_as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_only_a_pool_that_grows_by_many_is_set_aside() -> None:
    collector, before = Collector(), gc.get_freeze_count()
    collector.tick(GROWTH_NODES, 1.0)
    assert gc.get_freeze_count() <= before, "few nodes"
    collector.tick(10_000, 2.0)
    aside = gc.get_freeze_count()
    assert aside > before
    collector.tick(10_100, 3.0)
    assert gc.get_freeze_count() <= aside, "hardly more than before"


def test_what_follows_the_nodes_is_set_aside_too_for_a_while() -> None:
    collector = Collector()
    collector.tick(10_000, 0.0)
    aside = gc.get_freeze_count()
    kept: list[list[int]] = []

    def make_lots() -> None:
        while gc.get_count()[1] < MOST_LOTS:
            kept.append([])

    make_lots()
    collector.tick(10_000, SETTLES_S - 1.0)
    assert gc.get_freeze_count() >= aside + len(kept) - THRESHOLDS[0]
    aside = gc.get_freeze_count()
    make_lots()
    collector.tick(10_000, SETTLES_S + 1.0)
    assert gc.get_freeze_count() <= aside, "from then on they are looked through as ever"
