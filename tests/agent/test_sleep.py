"""A laptop that sleeps in the middle of a lease: everything of the agent stops, and goes on much later."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.pool import Pool, wait_for

SCRIPT = """
    import sys, time
    import fallow

    app = fallow.App("sleepy")

    @app.function()
    def once(n):
        time.sleep(0.02)
        return n

    seen = []
    for value in once.map(range(300)):
        seen.append(value)
        if len(seen) == 30:
            print("under way", flush=True)
    assert seen == list(range(300)), "not each result once, in order"
    print("all", flush=True)
"""


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


@pytest.mark.slow
def test_a_node_that_slept_past_its_silence_limit_goes_on(pool: Pool, tmp_path: Path) -> None:
    node = pool.join("laptop")
    wait_for("two nodes", lambda: len(pool.json("nodes")) == 2)
    script = pool.start_script(SCRIPT)
    assert script.stdout is not None
    assert script.stdout.readline().strip() == "under way"
    asleep = tree(psutil.Process(node.pid))
    for process in asleep:
        process.send_signal(signal.SIGSTOP)
    try:
        wait_for(
            "the leader to miss it",
            lambda: any(n["spec"]["name"] == "laptop" and n["state"] == "lost" for n in pool.json("nodes", "--all")),
        )
        out, errors = script.communicate(timeout=90)
    finally:
        for process in asleep:
            process.send_signal(signal.SIGCONT)
    assert out.strip() == "all", errors
    wait_for(
        "its return", lambda: all(n["state"] == "alive" for n in pool.json("nodes")) and len(pool.json("nodes")) == 2
    )
    again = pool.script(SCRIPT)
    assert again.returncode == 0, again.stderr
    jobs = pool.json("jobs")
    assert [job["counts"]["done"] for job in jobs] == [300, 300]
    laptop = [job["nodes"].get("laptop", 0) for job in jobs]
    assert laptop[0] > 0, "it works again"
