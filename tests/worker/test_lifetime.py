"""No process outlives its agent: whatever is killed, everything below it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fallow.agent.zygote import start_zygote
from fallow.model.errors import EnvironmentFailed
from tests.worker.harness import WITHIN_S, Bench, Recorder, is_alive

ROOT = Path(__file__).parents[2]

AGENT = """
import asyncio, json, subprocess, sys, time
from pathlib import Path
from tests.worker.harness import open_bench

async def main(folder):
    async with open_bench(Path(folder)) as bench:
        def work(x):
            import os, subprocess
            child = subprocess.Popen(["sleep", "600"])
            apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
            Path(folder, "pids").write_text(json.dumps([os.getpid(), os.getppid(), child.pid, apart.pid]))
            print("ready")
            while True:
                time.sleep(60)
        bench.run(work, [1])
        await bench.recorder.until(lambda: bench.recorder.lines)
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    process = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    pids: list[int] = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        pids = json.loads((tmp_path / "pids").read_text())
        yield process, pids
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        for pid in pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


async def until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while any(is_alive(pid) for pid in pids):
            await asyncio.sleep(0.01)


async def test_agent_killed(agent: tuple[subprocess.Popen[bytes], list[int]], tmp_path: Path) -> None:
    process, pids = agent
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    await until_gone(pids)
    async with asyncio.timeout(WITHIN_S):
        while list((tmp_path / "scratch").iterdir()):  # the zygote's folder goes with it
            await asyncio.sleep(0.01)


async def test_agent_interrupted(agent: tuple[subprocess.Popen[bytes], list[int]]) -> None:
    process, pids = agent
    process.send_signal(signal.SIGINT)
    await until_gone(pids)


async def test_zygote_killed(bench: Bench, tmp_path: Path) -> None:
    def work(x: int) -> None:
        import subprocess
        import time

        child = subprocess.Popen(["sleep", "600"])
        Path(tmp_path, "pid").write_text(str(child.pid))
        print("ready")
        time.sleep(600)

    token = bench.run(work, [1])
    await bench.recorder.until(lambda: bench.recorder.lines)
    child = int((tmp_path / "pid").read_text())
    worker, zygote = bench.worker.pid, bench.zygote.pid
    os.kill(zygote, signal.SIGKILL)
    death = await bench.recorder.death()
    assert bench.recorder.deaths[0][0] == token
    assert (death.kind, death.index) == ("worker_lost", 0)
    await bench.until_gone([worker, child])
    assert not bench.zygote.is_alive
    recorder = Recorder()
    again = Bench(bench.zygote, await bench.zygote.start_worker(0, recorder), recorder)
    assert await again.map(lambda x: x, range(3)) == [0, 1, 2]
    assert bench.zygote.pid != zygote


async def test_closing_ends_everything(bench: Bench) -> None:
    def work(x: int) -> None:
        import time

        print("ready")
        time.sleep(600)

    bench.run(work, [1])
    await bench.recorder.until(lambda: bench.recorder.lines)
    pids = [bench.zygote.pid, bench.worker.pid]
    await bench.zygote.close()
    await bench.until_gone(pids)


async def test_a_worker_holds_only_its_own_descriptors(bench: Bench) -> None:
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    recorder = Recorder()
    other = Bench(bench.zygote, await bench.zygote.start_worker(1, recorder), recorder)
    found: dict[int, list[str]] = {}
    for one in (bench, other):
        await one.map(lambda x: x, [1])
    for worker in (bench.worker, other.worker):
        for link in Path(f"/proc/{worker.pid}/fd").iterdir():
            found.setdefault(worker.pid, []).append(os.readlink(link))
    for links in found.values():
        assert sum(link.startswith("socket:") for link in links) == 1
        assert sum(link.startswith("pipe:") for link in links) == 2
        assert "/dev/null" in links
        assert len(links) <= 5, links


async def test_threads_of_numerical_libraries(bench: Bench) -> None:
    recorder = Recorder()
    wide = Bench(bench.zygote, await bench.zygote.start_worker(0, recorder, cpu=3), recorder)
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "FALLOW_WORKER"]

    def look(name: str) -> str | None:
        return os.environ.get(name)

    assert await bench.map(look, names) == ["1", "1", "1", "1", "1"]
    assert await wide.map(look, names) == ["3", "3", "3", "3", "1"]


async def test_variables_are_set(bench: Bench) -> None:
    recorder = Recorder()
    worker = await bench.zygote.start_worker(0, recorder, environment={"CUDA_VISIBLE_DEVICES": "1"})

    def look(name: str) -> str | None:
        return os.environ.get(name)

    assert await Bench(bench.zygote, worker, recorder).map(look, ["CUDA_VISIBLE_DEVICES"]) == ["1"]


async def test_modules_come_first_on_the_path(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("mine = True\n")
    recorder = Recorder()
    worker = await bench.zygote.start_worker(0, recorder, sys_path=[str(tmp_path)])
    own = Bench(bench.zygote, worker, recorder)

    def work(name: str) -> str:
        return sys.path[0]

    assert await own.map(work, ["x"]) == [str(tmp_path)]


async def test_an_interpreter_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="cannot be run"):
        await start_zygote(tmp_path / "nothing", scratch=tmp_path)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(EnvironmentFailed, match="no such module"):
        await start_zygote(broken, scratch=tmp_path)


async def test_starting_a_worker_leaks_no_descriptors(bench: Bench) -> None:
    async def once() -> int:
        worker = await bench.zygote.start_worker(1, Recorder())
        worker.stop()
        await worker.exited
        return psutil.Process().num_fds()

    before = await once()
    for _ in range(10):
        after = await once()
    assert after <= before
