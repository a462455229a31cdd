"""The demo's own pool."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.pool import wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"

DEMO = """
import time
from demo_pool import DemoPool

with DemoPool() as pool:
    print("up", flush=True)
    time.sleep(600)
"""


def pools_in(folder: Path) -> list[int]:
    """Processes whose home is below the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FALLOW_HOME", "").startswith(f"{folder}/"):
                found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(EXAMPLES)}
    process = subprocess.Popen([sys.executable, "-c", DEMO], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        assert pools_in(tmp_path)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    wait_for("the pool to end", lambda: not pools_in(tmp_path))
    assert not list(tmp_path.iterdir())
