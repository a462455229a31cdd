"""python -m bench.handover --repeat 10: what a user notices while a coordinator leaves, and while one joins.

Three coordinators on PostgreSQL, two nodes with workers; one script calls a function again and again, another draws
the results of a map as they come (tasks of one to two seconds, on one of the nodes). The coordinator that owns the
calls, and then that of the map, is drained as `fallow drain` does it; once that is over it is started again, and jobs
pass to it until all have a fair share. Measured is the longest time without an answer of a call, and without a result
of the map, in each of these windows, and in windows of the same length in which nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from bench.processes import busy_share
from bench.scale.pool import BenchPool, end
from fallow.wire import messages as wire
from fallow.wire import subjects
from fallow.wire.connection import Connection, connect

SLOTS = 12
WINDOW_S = 4.0
DEADLINE_S = 60.0
JOBS = 4
"""Maps that wait for a node that is not there, so that there is something to share out."""


class Stream:
    """The times at which a script had something."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.times: list[float] = []
        self.wrong = 0
        self._process = process
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.split()
            self.times.append(float(words[0]))
            self.wrong += words[-1] != b"True"

    def longest_gap(self, start: float, stop: float) -> float:
        """Seconds; one that began before the window, or ends after it, counts whole."""
        times = list(self.times)
        gaps = [b - a for a, b in itertools.pairwise(times) if b >= start and a <= stop]
        return max(gaps, default=stop - start)


class Owners:
    """Who owns what, by the owners' own reports."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, str]] = {}
        self.left: set[str] = set()

    def report(self, message: Any, _reply: str) -> None:
        if isinstance(message, wire.OwnerReport):
            if message.leaving:
                self.jobs.pop(message.owner, None)
            else:
                self.jobs[message.owner] = {
                    job.spec.job_id: "wait" if job.spec.resources.gpu.count else str(job.spec.kind)
                    for job in message.jobs
                    if job.info.state in ("open", "running")
                }

    def spread(self) -> bool:
        counts = [len(jobs) for jobs in self.jobs.values()]
        return len(counts) == 3 and max(counts) - min(counts) <= 1


async def _until(holds: Any, what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {DEADLINE_S:g} s for {what}")
        await asyncio.sleep(0.01)


async def _measure(pool: BenchPool, repeat: int, streams: dict[str, Stream]) -> dict[str, list[dict[str, float]]]:
    owners = Owners()
    connection = await connect(pool.address, "bench")
    await connection.subscribe(subjects.OWNERS, owners.report)
    found: dict[str, list[dict[str, float]]] = {"nothing": [], "drain": [], "join": []}
    await _until(lambda: all(len(stream.times) > 100 for stream in streams.values()), "calls and results")
    await _until(owners.spread, "the jobs to be shared out")

    async def window(kind: str, began: float, least_s: float) -> None:
        stop = max(time.monotonic(), began + least_s)
        await asyncio.sleep(max(0.0, stop - time.monotonic()))
        await _until(lambda: all(s.times[-1] > stop for s in streams.values()), "what comes after")
        gaps = {name: round(stream.longest_gap(began, stop), 3) for name, stream in streams.items()}
        found[kind].append(gaps | {"window_s": round(stop - began, 1)})

    for number in range(repeat):
        await window("nothing", time.monotonic(), WINDOW_S)
        names = sorted(owners.jobs)
        wanted = ("calls", "map")[number % 2]
        chosen = next((name for name in names if wanted in owners.jobs[name].values()), names[number % len(names)])
        part = next(each for each in pool.coordinators if each.owner == chosen)
        began = time.monotonic()
        await _drain(connection, chosen)
        await asyncio.to_thread(part.process.wait)
        await window("drain", began, WINDOW_S)
        owners.jobs.pop(chosen, None)
        began = time.monotonic()
        await asyncio.to_thread(part.start)
        await _until(owners.spread, "the jobs to be shared out again")
        await window("join", began, WINDOW_S)
    await connection.close()
    return found


async def _drain(connection: Connection, owner: str) -> None:
    answer = await connection.request(subjects.POOL, wire.DrainCoordinator(owner), 20.0)
    if not isinstance(answer, wire.Done):
        raise SystemExit(f"bench: {owner} is not drained: {answer}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.handover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=10, help="drains and joins")
    parser.add_argument("--store", default="postgresql", help="postgresql, or a URL")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main() -> int:
    options = arguments().parse_args()
    result: dict[str, Any] = {"busy_share_before": round(busy_share(1.0), 3)}
    with BenchPool(3, options.store) as pool:
        for name in ("one", "two"):
            pool.agent(name, SLOTS)

        def script(module: str, *words: str) -> Stream:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                env=pool.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            pool.callback(end, process)
            return Stream(process)

        streams = {"calls": script("bench.scale.caller"), "map": script("bench.scale.steady", "map")}
        for _ in range(JOBS):
            script("bench.scale.steady", "wait")
        found = asyncio.run(_measure(pool, options.repeat, streams))
        result["wrong"] = sum(stream.wrong for stream in streams.values())
    for kind, windows in found.items():
        for name in streams:
            gaps = sorted(each[name] for each in windows)
            result[f"{kind}_{name}_gap_s"] = {"p50": statistics.median(gaps), "max": gaps[-1]}
    result["windows"] = found
    if not options.json:
        del result["windows"]
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{k:22} {v}" for k, v in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
