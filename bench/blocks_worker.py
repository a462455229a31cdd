"""What one worker costs, without network and coordinator: python bench/blocks_worker.py

Prints ns per task of no-op maps, the median of single calls, and how much of the wall time of longer tasks is lost.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.worker.harness import Bench, open_bench


def noop(x: Any) -> Any:
    return x


async def timed(bench: Bench, fn: Any, items: Any, name: str, **order: Any) -> tuple[float, float, float, int]:
    """(wall, time in tasks, CPU time of the worker, reports), in seconds."""
    bench.recorder.reports.clear()
    token = bench.run(fn, items, name=name, **order)
    began = time.perf_counter()
    reports = await bench.recorder.ended(token)
    wall = time.perf_counter() - began
    for report in reports:
        for path in report.files.values():
            Path(path).unlink()
    return wall, sum(r.run_s for r in reports), sum(r.cpu_s for r in reports), len(reports)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        async with open_bench(Path(folder)) as bench:
            print(f"zygote and first worker          {1e3 * (time.perf_counter() - began):8.1f} ms")
            await timed(bench, noop, range(10), "noop")
            for label, items in (("range", range(1_000_000)), ("list", list(range(1_000_000)))):
                for _ in range(3):
                    wall, ran, cpu, reports = await timed(bench, noop, items, "noop")
                    print(
                        f"1M no-ops, {label:5}  wall {1e3 * wall:6.0f} ns  in tasks {1e3 * ran:6.0f} ns  "
                        f"CPU {1e3 * cpu:6.0f} ns a task, {reports} reports"
                    )
            calls = []
            for number in range(1000):
                calls.append((await timed(bench, noop, [number], "noop"))[0])
            print(f"single call, median              {1e6 * statistics.median(calls):8.0f} us")

            def spin(seconds: float) -> None:
                end = time.process_time() + seconds
                while time.process_time() < end:
                    pass

            for count, seconds in ((200, 0.005), (60, 0.027), (6, 0.3)):
                wall, ran, cpu, reports = await timed(bench, spin, [seconds] * count, "spin")
                lost = cpu / (count * seconds) - 1
                print(
                    f"{count:3} x {1e3 * seconds:3.0f} ms: CPU outside tasks   {100 * lost:8.2f} %, {reports} reports"
                )
            arrays = [np.ones(125_000) for _ in range(200)]
            paths = {number: f"{folder}/{number}" for number in range(200)}
            wall, _, cpu, reports = await timed(
                bench, lambda a: a + 1, arrays, "arrays", page_starts=tuple(range(200)), paths=paths
            )
            print(f"200 x 1 MB in and out, in files  {400 / wall:8.0f} MB/s, CPU {cpu / wall:.2f}, {reports} reports")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
