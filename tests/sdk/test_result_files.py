"""Results of some size on one machine."""

from __future__ import annotations

import pytest

from tests.pool import Pool
from tests.sdk import tasks

pytestmark = pytest.mark.slow


def test_many_results_pass_by_the_coordinator_where_all_are_on_one_machine(connected: Pool) -> None:
    """They lie in the blob store's folder, and the coordinator's store has their names alone."""
    blobs = connected.home / "pool" / "blobs"
    before = {path.name for path in blobs.glob("??/*")}
    results = tasks.square.map(range(400_000))
    for index, value in enumerate(results):
        assert value == index * index
    assert {path.name for path in blobs.glob("??/*")} - before
