"""Workers that die, hang or grow, each with its task named."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from fallow.model.job import Resources
from tests.worker.harness import Bench, is_alive, results_of


async def test_exit(bench: Bench) -> None:
    token = bench.run(lambda x: os._exit(3) if x == 5 else x, range(10))
    death = await bench.recorder.death()
    assert bench.recorder.deaths[0][0] == token
    assert (death.kind, death.index) == ("worker_lost", 5)
    assert death.message == "the worker exited with code 3 (os._exit)"
    assert bench.worker.gone


async def test_segmentation_fault_leaves_its_traceback(bench: Bench) -> None:
    def work(x: int) -> int:
        if x == 2:
            ctypes.string_at(0)
        return x

    bench.run(work, range(4))
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("worker_lost", 2)
    assert "killed by SIGSEGV" in death.message
    assert death.detail.splitlines()[0] == "Fatal Python error: Segmentation fault"
    assert death.detail.endswith("in string_at")
    assert [line.text for line in bench.recorder.lines] == ["Fatal Python error: Segmentation fault"]


async def test_what_was_handed_in_before_the_death_counts(bench: Bench, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def work(x: int) -> int:
        while x == 3 and not gate.exists():
            time.sleep(0.01)
        if x == 4:
            os._exit(1)
        return x

    bench.run(work, range(9))
    await bench.recorder.until(lambda: len(results_of(bench.recorder.reports)) == 3)
    gate.touch()
    death = await bench.recorder.death()
    assert death.index == 4
    assert sorted(results_of(bench.recorder.reports))[:3] == [0, 1, 2]


@pytest.mark.slow
async def test_timeout_is_per_task(bench: Bench) -> None:
    def work(x: int) -> int:
        time.sleep(60 if x == 5 else 0.4)
        return x

    bench.run(work, range(8), spec=bench.spec(timeout_s=1.5))
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("timeout", 5)
    assert "longer than its time limit of 1.5 s" in death.message


async def test_timeout_says_where_the_task_hung(bench: Bench) -> None:
    def inner() -> None:
        time.sleep(60)

    def work(x: int) -> None:
        inner()

    bench.run(work, range(2), spec=bench.spec(timeout_s=0.2))
    death = await bench.recorder.death()
    first, outer, innermost = death.detail.splitlines()
    assert first == "The task was here (most recent call last):"
    assert outer.endswith("in work")
    assert innermost.endswith("in inner")
    assert "test_deaths.py" in innermost
    assert bench.recorder.lines == []


async def test_timeout_of_a_task_that_holds_the_interpreter(bench: Bench) -> None:
    def work(x: int) -> int:
        ctypes.PyDLL(None).sleep(60)
        return x

    bench.run(work, range(2), spec=bench.spec(timeout_s=0.3))
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("timeout", 0)


async def test_memory_limit(bench: Bench) -> None:
    def work(x: int) -> int:
        held = []
        while x == 1:
            held.append(bytearray(os.urandom(1024) * 1024))
            time.sleep(0.002)
        return x

    bench.run(work, range(3), spec=bench.spec(resources=Resources(memory_bytes=150_000_000)))
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("memory", 1)
    assert "the limit is 150,000,000" in death.message


async def test_death_while_a_result_is_encoded(bench: Bench) -> None:
    class Bomb:
        def __reduce__(self) -> str:
            os._exit(9)

    bench.run(lambda x: Bomb(), range(1))
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("worker_lost", 0)


async def test_a_crash_while_loading_is_a_failed_setup(bench: Bench) -> None:
    class Model:
        def load(self) -> None:
            os._exit(4)

    bench.run("load", range(3), cls_hooks=(Model, (), {}, ("load",), ()))  # type: ignore[arg-type]
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("setup", -1)
    assert "exited with code 4" in death.message


async def test_killed_from_outside(bench: Bench) -> None:
    token = bench.run(lambda x: time.sleep(60), range(3))
    await bench.until_index(token, 0)
    os.kill(bench.worker.pid, signal.SIGKILL)
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("worker_lost", 0)
    assert "killed by SIGKILL" in death.message


async def test_killed_by_the_agent(bench: Bench) -> None:
    bench.run(lambda x: time.sleep(60), range(3))
    bench.worker.kill("cancelled", "the job was cancelled")
    bench.worker.kill("timeout", "too late")
    death = await bench.recorder.death()
    assert (death.kind, death.message) == ("cancelled", "the job was cancelled")


async def test_sigint_does_not_reach_tasks(bench: Bench) -> None:
    def work(x: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return x

    assert await bench.map(work, range(3)) == [0, 1, 2]


async def test_a_child_that_comes_back_out_of_a_task_does_not_speak_for_it(bench: Bench) -> None:
    def work(x: int) -> int:
        if os.fork() == 0:
            return -1
        return x

    assert await bench.map(work, range(3)) == [0, 1, 2]


async def test_a_worker_that_is_idle_ends_when_told(bench: Bench) -> None:
    bench.worker.stop()
    assert await bench.worker.exited == 0
    assert bench.recorder.deaths == []


async def test_stop_waits_for_the_order(bench: Bench) -> None:
    token = bench.run(lambda x: time.sleep(0.01) or x, range(20))
    bench.worker.stop()
    reports = await bench.recorder.ended(token)
    assert sorted(results_of(reports)) == list(range(20))
    assert await bench.worker.exited == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how processes hang together")
async def test_processes_that_a_task_started_end_with_its_worker(bench: Bench) -> None:
    def work(x: int) -> list[int]:
        import subprocess

        plain = subprocess.Popen(["sleep", "600"])
        apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
        daemon = subprocess.run(
            ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
        )
        return [plain.pid, apart.pid, int(daemon.stdout)]

    (pids,) = await bench.map(work, [1])
    assert isinstance(pids, list)
    assert all(is_alive(pid) for pid in pids)
    bench.worker.kill("worker_lost", "test")
    await bench.recorder.death()
    await bench.until_gone(pids)
