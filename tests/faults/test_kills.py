"""SIGKILL of every part in the middle of 100,000 tasks: each result is there exactly once, in order."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import psutil
import pytest

from tests.pool import DEADLINE_S, Pool, read_line, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TASKS = 100_000
KILL_AT = 15_000

SCRIPT = f"""
    import time
    import fallow
    app = fallow.App("faults")

    @app.function()
    def work(x):
        if x % 2:
            time.sleep(0.00005)
        return x * 3

    expected = 0
    for value in work.map(range({TASKS})):
        if value != expected * 3:
            raise SystemExit(f"result {{expected}} is {{value}}")
        expected += 1
        if expected == {KILL_AT}:
            print("midway", flush=True)
    print("all", expected, flush=True)
"""


def run_and_kill(pool: Pool, kill: Callable[[], object]) -> dict[str, object]:
    """Run the job, kill in its middle, check that it completes; the job as the pool tells it."""
    script = pool.start_script(SCRIPT)
    try:
        if read_line(script) != "midway":
            raise subprocess.TimeoutExpired("the first part of the job", DEADLINE_S)
        kill()
        out, errors = script.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        script.kill()
        out, errors = script.communicate()
        raise AssertionError(f"the job stands still: {out}{errors}\n{pool.said()}\n{_story(pool)}") from None
    finally:
        script.kill()
        script.wait()
    assert out.strip() == f"all {TASKS}", errors
    assert script.returncode == 0, errors
    job = next(job for job in pool.json("jobs") if job["name"] == "work")
    assert job["counts"]["done"] == TASKS, job
    assert job["counts"]["failed"] == 0, job
    return dict(job)


def _story(pool: Pool) -> str:
    """What the pool knows and its parts have said, for the failure's message."""
    logs = [path.read_text(errors="replace")[-3000:] for path in sorted((pool.home / "pool").glob("*.log"))]
    asked = [pool.cli(*command).stdout for command in (("jobs", "--json"), ("nodes", "--json"))]
    return "\n".join([*asked, *logs])


def workers_of(pool: Pool) -> list[psutil.Process]:
    """The local node's workers: children of its zygotes."""
    return [
        worker
        for zygote in pool.child("local node").children()
        for worker in zygote.children()
        if worker.status() != psutil.STATUS_ZOMBIE
    ]


def test_a_worker_is_killed(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    # (The one that has worked most: another may be kept in reserve.)
    job = run_and_kill(pool, lambda: max(workers_of(pool), key=lambda worker: sum(worker.cpu_times()[:2])).kill())
    assert job["counts"]["worker_deaths"] >= 1  # type: ignore[index]


def test_the_local_node_is_killed_and_comes_back(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    run_and_kill(pool, lambda: pool.kill("local node"))
    assert "the local node ended by SIGKILL" in pool.said()


def test_one_of_two_nodes_is_killed(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(slots=1)
    node = pool.join("doomed")
    wait_for("two nodes", lambda: len(pool.json("nodes")) == 2)
    run_and_kill(pool, node.kill)
    node.wait()


def test_the_coordinator_is_killed_and_comes_back(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    run_and_kill(pool, lambda: pool.kill("coordinator"))
    assert "the coordinator ended by SIGKILL" in pool.said()


def test_the_nats_server_is_killed_and_comes_back(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    run_and_kill(pool, lambda: pool.kill("nats-server"))
    assert "the nats-server ended by SIGKILL" in pool.said()


def test_everything_but_the_script_is_killed_at_once(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()

    def kill_and_start() -> None:
        assert pool.process is not None
        pool.process.kill()
        pool.process.wait()
        pool.assert_nothing_left()
        pool.start()

    run_and_kill(pool, kill_and_start)
