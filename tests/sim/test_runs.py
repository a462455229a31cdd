"""Whole pools in virtual time, by seed: faults first, then health, and every job must have ended with every task
recorded once. A red run prints the command that repeats it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fallow.sim.options import Options
from fallow.sim.world import World


def rough(seed: int, **other: object) -> Options:
    """A small pool in weather that no pool should see: a fault every few seconds, nodes that come and go."""
    given: dict[str, object] = {
        "nodes": 24,
        "slots": 2,
        "hours": 0.05,
        "jobs": 4,
        "seed": seed,
        "task_s": 4.0,
        "load": 0.6,
        "churn": 400.0,
        "fault_rate": 1200.0,
        "poison": 200,
        "drain_hours": 1.0,
    }
    return Options(**{**given, **other})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_in_rough_weather(seed: int) -> None:
    summary = World(rough(seed)).run()
    assert summary.tasks > 100
    assert sum(summary.faults.values()) > 20


@pytest.mark.parametrize("seed", range(6))
def test_short_tasks_in_long_leases(seed: int) -> None:
    """Leases of many tasks: partial results, taking back and poison in the middle of a range."""
    World(rough(seed, task_s=0.2, jobs=2, nodes=8, hours=0.03)).run()


@pytest.mark.parametrize("seed", range(4))
def test_one_coordinator_alone(seed: int) -> None:
    World(rough(seed, coordinators=1)).run()


def test_without_faults_nothing_fails_and_little_is_wasted() -> None:
    calm = Options(
        nodes=200, hours=2.0, jobs=4, fault_rate=0.0, silent_share=0.0, loss=0.0, duplicate=0.0, poison=0, load=1.2
    )
    summary = World(calm).run()
    assert summary.failed == 0
    assert summary.utilisation > 0.9
    assert summary.wasted_share < 0.03
    assert summary.take_overs == summary.fenced_commits == summary.stale_leases == 0


def test_faults_were_met_and_fences_were_needed() -> None:
    """The runs above mean little if no stale owner ever tried."""
    fenced = stale = taken = 0
    for seed in range(6, 12):
        summary = World(rough(seed, hours=0.1)).run()
        fenced += summary.fenced_commits
        stale += summary.stale_leases
        taken += summary.take_overs
    assert fenced > 0
    assert stale > 0
    assert taken > 20


def test_same_seed_same_transcript() -> None:
    """In other processes too, where strings hash otherwise."""
    code = (
        "from fallow.sim.options import Options; from fallow.sim.world import World;"
        "print(World(Options(nodes=20, hours=0.05, jobs=3, seed=5, task_s=5.0, churn=200.0, fault_rate=900.0))"
        ".run().digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in (1, 2)
    }
    assert len(digests) == 1
    assert World(rough(1)).run().digest != World(rough(2)).run().digest
