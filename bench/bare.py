"""What the machine alone takes for some CPU work: processes without anybody who hands out tasks.

    python -m bench.bare LENGTHS WORKERS     LENGTHS: a JSON list of seconds; prints the seconds that they took

It forks, so it is a program of its own: what measures a pool has threads.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier

from bench import work

START_LIMIT_S = 30.0


def shares(lengths: Sequence[float], workers: int) -> list[list[float]]:
    """The longest first, each to whoever has least (Graham 1969): for many tasks as even as can be."""
    out: list[list[float]] = [[] for _ in range(workers)]
    totals = [0.0] * workers
    for length in sorted(lengths, reverse=True):
        least = totals.index(min(totals))
        totals[least] += length
        out[least].append(length)
    return out


def makespan_s(lengths: Sequence[float], workers: int) -> float:
    """Seconds until `workers` processes have burnt these seconds of CPU time, divided beforehand; in a process of its
    own. Raises RuntimeError with the last words of that process."""
    command = [sys.executable, "-m", "bench.bare", json.dumps(list(lengths)), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the bare processes failed: {(done.stderr.strip().splitlines() or ['no words'])[-1]}")
    return float(done.stdout)


def _forked_s(lengths: Sequence[float], workers: int) -> float:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers + 1)
    processes = [context.Process(target=_burn_all, args=(share, start)) for share in shares(lengths, workers)]
    for process in processes:
        process.start()
    start.wait(START_LIMIT_S)
    began = time.perf_counter()
    for process in processes:
        process.join()
    took_s = time.perf_counter() - began
    if any(process.exitcode for process in processes):
        raise RuntimeError("a bare process failed")
    return took_s


def _burn_all(lengths: Sequence[float], start: Barrier) -> None:
    start.wait(START_LIMIT_S)
    for length in lengths:
        work.burn(length)


if __name__ == "__main__":
    print(_forked_s(json.loads(sys.argv[1]), int(sys.argv[2])))
