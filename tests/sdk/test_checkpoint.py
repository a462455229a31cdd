"""Tasks that keep their state, on a real pool."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import fallow
from fallow.model.errors import FallowError
from tests.pool import Pool, wait_for

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.slow]

app = fallow.App("checkpoints")
STEPS = 40


@app.function(retries=1)
def steps(folder: str, how: str, ballast: int) -> int:
    """Walks, and dies once in the middle (or waits there until it is killed)."""
    step: int = fallow.checkpoint.load(default=(0, b""))[0]
    while step < STEPS:
        with Path(folder, "steps").open("a") as file:
            file.write(f"{step}\n")
        step += 1
        fallow.checkpoint.save((step, os.urandom(ballast)), force=True)
        if step == STEPS // 2 and not Path(folder, "hit").exists():
            Path(folder, "hit").write_text(str(os.getpid()))
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise ValueError("once")
            while not Path(folder, "go").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
    return step


def walked(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "steps").read_text().split()]


@pytest.mark.parametrize("how", ["die", "raise"])
@pytest.mark.parametrize("ballast", [10, 400_000])
def test_a_task_goes_on_where_it_saved_last(tmp_path: Path, how: str, ballast: int) -> None:
    assert list(steps.starmap([(str(tmp_path), how, ballast)])) == [STEPS]
    assert walked(tmp_path) == list(range(STEPS))


def test_a_single_call_goes_on(tmp_path: Path) -> None:
    assert steps.remote(str(tmp_path), "die", 10) == STEPS
    assert walked(tmp_path) == list(range(STEPS))


@pytest.mark.parametrize("ballast", [10, 400_000])
def test_the_state_outlives_the_coordinator(connected: Pool, tmp_path: Path, ballast: int) -> None:
    results = steps.starmap([(str(tmp_path), "wait", ballast)])
    wait_for("half of the way", (tmp_path / "hit").exists)
    old = connected.child("coordinator")
    old.send_signal(signal.SIGKILL)
    wait_for("the end of the coordinator", lambda: not old.is_running())
    (tmp_path / "go").write_text("")
    assert list(results) == [STEPS]
    assert walked(tmp_path) == list(range(STEPS))


def test_outside_a_task() -> None:
    assert fallow.checkpoint.load(default=7) == 7
    assert fallow.preempted() == 0
    with pytest.raises(FallowError, match="inside a task only"):
        fallow.checkpoint.save(1)
    with pytest.raises(FallowError, match="inside a task only"):
        fallow.checkpoint.on_preempt(print)
