"""Things of a pool that have one name: its node and its coordinator are called after the machine, and two machines may
be called alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pool import Pool, wait_for

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


def test_two_nodes_with_one_name_both_work_and_are_told_apart_by_their_ids(pool: Pool, tmp_path: Path) -> None:
    for home in ("one", "two"):
        pool.join("twin", 1, tmp_path / home, "--own-pool")

    def twins() -> list[str]:
        return [node["spec"]["node_id"] for node in pool.json("nodes") if node["spec"]["name"] == "twin"]

    wait_for("both", lambda: len(twins()) == 2)
    done = pool.script("""
        import time
        import fallow
        app = fallow.App("twins")

        @app.function()
        def nap(x):
            time.sleep(0.05)
            return x

        assert list(nap.map(range(100))) == list(range(100))
    """)
    assert done.returncode == 0, done.stderr

    def worked() -> set[str]:
        return {node["spec"]["node_id"] for node in pool.json("nodes") if node["tasks_done"]}

    wait_for("word of what they did", lambda: set(twins()) <= worked())
    refused = pool.cli("drain", "twin")
    assert refused.returncode == 1
    assert "2 nodes match 'twin'" in refused.stderr
    assert all(node_id in refused.stderr for node_id in twins())
    first, second = twins()
    assert pool.cli("drain", first).returncode == 0

    def states() -> dict[str, str]:
        return {node["spec"]["node_id"]: node["state"] for node in pool.json("nodes")}

    wait_for("the one to drain", lambda: states()[first] == "draining")
    assert states()[second] == "alive"
