"""A pool that `fallow up` runs calls its node and its coordinator after the machine."""

from __future__ import annotations

import json

import pytest

from tests.pool import Pool

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def test_a_node_that_is_called_as_the_only_coordinator_is_drained(pool: Pool) -> None:
    status = json.loads(pool.cli("status", "--json").stdout)
    node = json.loads(pool.cli("nodes", "--json").stdout)[0]["spec"]
    assert [one["name"] for one in status["coordinators"]] == [node["name"]]
    drained = pool.cli("drain", node["name"], "--json")
    try:
        assert drained.returncode == 0, drained.stderr
        assert node["node_id"] in drained.stdout or node["name"] in drained.stdout
        assert "coordinator" not in drained.stdout
    finally:
        assert pool.cli("resume", node["name"]).returncode == 0
