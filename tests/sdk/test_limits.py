"""Environments, limits and faults, as a caller sees them."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

import fallow
from fallow.model import errors
from tests.pool import Pool
from tests.sdk import tasks
from tests.sdk.limit_tasks import allocates, cannot_be_built, crashes, enormous, large, needs_cpus, needs_gpus, uses_six

REFUSED_S = 30.0
"""It takes about a second where the nodes have been the same for a while; this is for machines that are busy."""

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.slow]


def test_an_environment_is_built_on_the_node() -> None:
    assert list(uses_six.map(range(3))) == ["1.17.0 0", "1.17.0 1", "1.17.0 2"]
    assert uses_six.remote(4) == "1.17.0 4"


def test_an_environment_that_cannot_be_built_says_so_in_the_resolvers_words() -> None:
    for call in (lambda: list(cannot_be_built.map([1])), lambda: cannot_be_built.remote(1)):
        with pytest.raises(errors.EnvironmentFailed, match="fallow-has-no-such-dependency"):
            call()


def test_memory_without_end() -> None:
    results = list(allocates.map(range(4), return_exceptions=True))
    assert isinstance(results[1], errors.TaskOutOfMemory)
    assert isinstance(results[1], MemoryError)
    assert [results[0], results[2], results[3]] == [0, 2, 3]


def test_a_segfault() -> None:
    results = list(crashes.map(range(4), return_exceptions=True))
    assert isinstance(results[1], errors.WorkerLost)
    assert "SIGSEGV" in results[1].exit_cause
    assert [results[0], results[2], results[3]] == [0, 2, 3]


def test_a_large_result() -> None:
    (result,) = large.map([7])
    assert len(result) == 300_000_000
    assert result[:2] == result[-2:] == b"\x07\x07"


def test_what_no_node_could_run_is_refused_quickly_and_in_words() -> None:
    """With the limit and what nodes there are: not waited for, since no node that could is on its way."""
    memory = r"no node of this pool can run 'enormous(\(\))?': it needs 900 TB of memory, and \S+ has [\d.]+ GB"
    gpus = r"no node of this pool can run 'needs_gpus(\(\))?': it needs 64 GPU of No Such Model, and \S+ has "
    cpus = r"no node of this pool can run 'needs_cpus(\(\))?': it needs 4096 CPUs, and \S+ lends \d+"

    def refused(call: Callable[[], object], words: str) -> float:
        began = time.monotonic()
        with pytest.raises(errors.JobTooLarge, match=words):
            call()
        return time.monotonic() - began

    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: list(enormous.map([1])), memory),
        (lambda: enormous.remote(1), memory),
        (lambda: enormous.spawn(1).get(), memory),
        (lambda: list(needs_gpus.map([1])), gpus),
        (lambda: list(needs_cpus.map([1])), cpus),
    ]
    with ThreadPoolExecutor(len(calls)) as callers:
        assert max(callers.map(refused, *zip(*calls, strict=True))) < REFUSED_S
    assert list(tasks.square.map([3])) == [9], "the pool goes on"


@pytest.mark.parametrize("victim", ["coordinator", "local node", "nats-server"])
def test_every_result_once_and_in_order_though_a_part_is_killed(connected: Pool, victim: str) -> None:
    n = 1_500_000
    results = tasks.square.map(iter(range(n)))
    seen = list(itertools.islice(results, n // 60))
    connected.child(victim).send_signal(signal.SIGKILL)
    seen += results
    assert seen == [x * x for x in range(n)]
    assert tasks.square.remote(3) == 9


def test_single_calls_survive_the_coordinator(connected: Pool) -> None:
    with fallow.Executor() as executor:
        futures = [executor.submit(tasks.square.fn, n) for n in range(3000)]
        assert futures[10].result(60) == 100
        connected.child("coordinator").send_signal(signal.SIGKILL)
        futures += [executor.submit(tasks.square.fn, n) for n in range(3000, 4000)]
        assert [future.result(100) for future in futures] == [n * n for n in range(4000)]


def test_workers_killed_in_the_middle(connected: Pool) -> None:
    n = 40_000
    results = tasks.square.map(range(n))
    seen = list(itertools.islice(results, 100))
    for pid in {tasks.pid.remote() for _ in range(4)}:
        if pid != os.getpid() and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    seen += results
    assert seen == [x * x for x in range(n)]
