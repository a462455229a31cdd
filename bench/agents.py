"""python -m bench.agents --agents 10000 --warm-up 30 --seconds 60: how many nodes one coordinator holds.

Agents are real but for their workers: each has a connection of its own and takes its decisions by the agent's code;
running a range is a timer. The coordinators, the NATS server, the store and the client are the ones of a pool. With
--store postgresql and --coordinators 1,2,3 the same load is put on so many coordinators in turn; with --load each, so
much for each of them; with --load both, first the one and then the other. What a coordinator costs at rest, and with
--idle what nodes cost without work, is measured first and told apart from what leases cost above it. --timeline says
where the slowest leases were while they were waited for (and costs some time itself).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench.processes import busy_share
from bench.scale.link import open_link
from bench.scale.pool import HOST, TOKEN, BenchPool, end, percentiles
from bench.scale.small_agent import SmallAgent, Tally
from bench.scale.timeline import slowest_leases

LEAST_TASKS = 100_000
AFTER_SETTLING_S = 2.0
WARM_SHARE = 0.4
SETTLED_S = 4.0
"""A coordinator that has just started loads some things behind its first answers."""


async def _measure(pool: BenchPool, options: argparse.Namespace) -> dict[str, Any]:
    python = ".".join(platform.python_version_tuple()[:2])
    tally = Tally()
    agents: list[SmallAgent] = []
    client = None
    await asyncio.sleep(SETTLED_S if options.rest else 0.0)
    rest = await _used(pool, options.rest)
    started = time.monotonic()
    try:
        if not options.idle:
            client = _client(pool, options)
        pace = options.warm_up * (1 - WARM_SHARE) / max(1, options.agents)
        for number in range(options.agents):
            agent = SmallAgent(number, (python,), options.task_s, tally)
            server = pool.servers[number % len(pool.servers)]
            agent.begin(await open_link(HOST, server.port, TOKEN, agent.receive))
            agents.append(agent)
            ahead = started + number * pace - time.monotonic()
            if ahead > 0.01:
                await asyncio.sleep(ahead)
        joined_s = time.monotonic() - started
        idle = rest
        if options.idle:
            await asyncio.sleep(2.0)
            idle = await _used(pool, options.idle)
            client = _client(pool, options)
            started = time.monotonic()
        # Where the machine is busy they have joined late: some time to come to rest all the same.
        await asyncio.sleep(max(WARM_SHARE * options.warm_up, started + options.warm_up - time.monotonic()))
        _settle()
        await asyncio.sleep(AFTER_SETTLING_S if options.seconds > AFTER_SETTLING_S else 0.0)
        generator_before, waited_before = _cpu_s(), _waited_s()
        tally.clear()
        began = time.monotonic()
        used = await _used(pool, options.seconds)
        elapsed = time.monotonic() - began
        generator_s, waited_s = _cpu_s() - generator_before, _waited_s() - waited_before
        working = sum(1 for agent in agents if agent.is_running)
        closed = sum(1 for agent in agents if agent.link is None or agent.link.is_closed)
        result = _summary(options, tally, elapsed, used, idle, rest) | {
            "joined_s": round(joined_s, 1), "working_share": round(working / max(1, options.agents), 4),
            "connections_lost": closed, "generator_cpu_share": round(generator_s / elapsed, 3),
            "generator_waited_share": round(waited_s / elapsed, 3),
            "server_cpu_s": round(_process_cpu_s(pool.servers[0].process.pid), 1),
        }  # fmt: skip
        if options.timeline:
            result["slowest_leases"] = slowest_leases(tally, [one.timeline() for one in pool.coordinators])
        return result
    finally:
        for agent in agents:
            agent.end()
        if client is not None:
            end(client)


def _client(pool: BenchPool, options: argparse.Namespace) -> Any:
    tasks = max(LEAST_TASKS, int(options.agents * (options.warm_up + options.seconds + 120) / options.task_s))
    return pool.client(tasks // options.jobs, options.jobs, options.task_s)


async def _used(pool: BenchPool, seconds: float) -> list[dict[str, Any]]:
    """What each coordinator used a second, watched for so long (0: nothing is watched)."""
    if not seconds:
        return [{} for _ in pool.coordinators]
    before = [coordinator.stats() for coordinator in pool.coordinators]
    await asyncio.sleep(seconds)
    after = [coordinator.stats() for coordinator in pool.coordinators]
    found = []
    for old, new in zip(before, after, strict=True):
        took = new["at_s"] - old["at_s"]
        one: dict[str, Any] = {
            key: (new[key] - old[key]) / took for key in ("cpu_s", "commits", "operations", "wakeups")
        }
        one["threads"] = {
            name: tuple((b - a) / took for a, b in zip(old["threads"].get(name, (0.0, 0.0)), times, strict=True))
            for name, times in new["threads"].items()
        }
        found.append(one | {"rss_bytes": new["rss_bytes"]})
    return found


def _settle() -> None:
    """No look through everything this process has while it measures: it would count as the coordinator's delay."""
    gc.collect()
    gc.freeze()


def _summary(
    options: argparse.Namespace, tally: Tally, elapsed: float, used: list[dict[str, Any]], idle: list[dict[str, Any]],
    rest: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    def total(of: list[dict[str, Any]], key: str) -> float:
        return float(sum(one.get(key, 0.0) for one in of))

    leases = max(1, tally.leases)
    rate = leases / elapsed
    names = sorted({name for one in used for name in one["threads"]})
    return {
        "agents": options.agents, "coordinators": len(used), "jobs": options.jobs, "store": options.store,
        "task_s": options.task_s, "seconds": round(elapsed, 1), "leases": tally.leases,
        "leases_per_s": round(rate, 1), "tasks_per_s": round(tally.tasks / elapsed, 1),
        "mean_lease_s": round(tally.busy_s / leases, 2), "messages_sent_per_s": round(tally.sent / elapsed, 1),
        "repeated": tally.repeated,
        "idle_pull_to_lease": percentiles(tally.idle_s), "ahead_pull_to_lease": percentiles(tally.ahead_s),
        "any_pull_to_lease": percentiles(tally.idle_s + tally.ahead_s), "hand_in_to_ack": percentiles(tally.ack_s),
        "rest_cpu_ms_per_s": [round(1e3 * one.get("cpu_s", 0.0), 1) for one in rest],
        "idle_cpu_ms_per_s": [round(1e3 * one.get("cpu_s", 0.0), 1) for one in idle],
        "coordinator_cpu_us_per_lease": round(1e6 * total(used, "cpu_s") / rate),
        "above_rest_us_per_lease": round(1e6 * (total(used, "cpu_s") - total(rest, "cpu_s")) / rate),
        "above_idle_us_per_lease": round(1e6 * (total(used, "cpu_s") - total(idle, "cpu_s")) / rate),
        "threads_us_per_lease": {
            name: round(1e6 * sum(one["threads"].get(name, (0.0, 0.0))[0] for one in used) / rate) for name in names
        },
        "main_waited_share": [round(one["threads"]["MainThread"][1], 3) for one in used],
        "coordinator_cpu_share": [round(one["cpu_s"], 3) for one in used],
        "wakeups_per_lease": round(total(used, "wakeups") / rate, 2),
        "commits_per_lease": round(total(used, "commits") / rate, 3),
        "operations_per_commit": round(total(used, "operations") / max(1e-9, total(used, "commits")), 2),
        "coordinator_rss_mb": [round(one["rss_bytes"] / 1e6) for one in used],
    }  # fmt: skip


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _waited_s() -> float:
    """For which this process' main thread waited for a processor."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def _process_cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.agents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=10_000, help="nodes of one slot each")
    parser.add_argument("--warm-up", type=float, default=30.0, help="seconds; agents join during the first 60 %% of it")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure")
    parser.add_argument("--task-s", type=float, default=1.0, help="seconds that a task takes")
    parser.add_argument("--jobs", type=int, default=1, help="maps at once")
    parser.add_argument("--store", default="sqlite", help="sqlite, postgresql, or a URL")
    parser.add_argument("--coordinators", default="1", help="numbers of coordinators to measure, such as 1,2,3")
    parser.add_argument(
        "--load", choices=("total", "each", "both"), default="total",
        help="so many agents and jobs in all, for each of the coordinators, or first the one and then the other",
    )  # fmt: skip
    parser.add_argument("--rest", type=float, default=4.0, help="seconds for which coordinators alone are measured")
    parser.add_argument(
        "--idle", type=float, default=0.0, help="seconds for which they are measured with nodes, before there is work"
    )
    parser.add_argument("--timeline", action="store_true", help="say where the slowest leases were")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main() -> int:
    options = arguments().parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    if limit[1] < options.agents + 100:
        print(f"bench: {options.agents} agents need as many open files; the limit here is {limit[1]}", file=sys.stderr)
        return 2
    import uvloop

    if options.timeline:
        os.environ["BENCH_TIMELINE"] = "1"
    results = []
    loads = ("total", "each") if options.load == "both" else (options.load,)
    counts = [int(word) for word in options.coordinators.split(",")]
    for kind, count in ((kind, count) for kind in loads for count in counts):
        if kind == "each" and count == 1 and "total" in loads:
            continue  # the same
        busy = busy_share(1.0)
        with BenchPool(count, options.store) as pool:
            factor = count if kind == "each" else 1
            load = argparse.Namespace(**vars(options))
            load.agents, load.jobs = options.agents * factor, options.jobs * factor
            result = {"load": kind} | uvloop.run(_measure(pool, load)) | {"busy_share_before": round(busy, 3)}
            for coordinator in pool.coordinators:
                if words := coordinator.log().strip():
                    print(f"{coordinator.owner} said: {words[-1000:]}", file=sys.stderr)
        results.append(result)
        if not options.json:
            for key, value in result.items():
                print(f"{key:30} {value}")
            print(flush=True)
    if options.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
