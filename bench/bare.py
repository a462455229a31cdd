"""What the machine alone takes for some CPU work: processes without anybody who hands out tasks."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier

from bench import work


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
    """Seconds until `workers` processes have burnt these seconds of CPU time, divided beforehand. Call it before the
    process has threads: it forks."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers + 1)
    processes = [context.Process(target=_burn_all, args=(share, start)) for share in shares(lengths, workers)]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    took_s = time.perf_counter() - began
    if any(process.exitcode for process in processes):
        raise RuntimeError("a bare process failed")
    return took_s


def _burn_all(lengths: Sequence[float], start: Barrier) -> None:
    start.wait()
    for length in lengths:
        work.burn(length)
