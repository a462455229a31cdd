"""python -m bench.agents --agents 10000 --warm-up 30 --seconds 60: how many nodes one coordinator holds.

Agents are real but for their workers: each has a connection of its own and takes its decisions by the agent's code;
running a range is a timer. The coordinators, the NATS server, the store and the client are the ones of a pool. With
--store postgresql and --coordinators 1,2,3 the same load is put on so many coordinators in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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

LEAST_TASKS = 100_000


async def _measure(pool: BenchPool, options: argparse.Namespace) -> dict[str, Any]:
    python = ".".join(platform.python_version_tuple()[:2])
    tally = Tally()
    agents: list[SmallAgent] = []
    started = time.monotonic()
    tasks = max(LEAST_TASKS, int(options.agents * (options.warm_up + options.seconds + 120) / options.task_s))
    client = pool.client(tasks // options.jobs, options.jobs, options.task_s)
    try:
        pace = options.warm_up * 0.6 / max(1, options.agents)
        for number in range(options.agents):
            agent = SmallAgent(number, (python,), options.task_s, tally)
            server = pool.servers[number % len(pool.servers)]
            agent.begin(await open_link(HOST, server.port, TOKEN, agent.receive))
            agents.append(agent)
            ahead = started + number * pace - time.monotonic()
            if ahead > 0.01:
                await asyncio.sleep(ahead)
        joined_s = time.monotonic() - started
        await asyncio.sleep(max(0.0, started + options.warm_up - time.monotonic()))
        before = [coordinator.stats() for coordinator in pool.coordinators]
        generator_before, began = _cpu_s(), time.monotonic()
        tally.clear()
        await asyncio.sleep(options.seconds)
        elapsed = time.monotonic() - began
        generator_s = _cpu_s() - generator_before
        after = [coordinator.stats() for coordinator in pool.coordinators]
        working = sum(1 for agent in agents if agent.is_running)
        closed = sum(1 for agent in agents if agent.link is None or agent.link.is_closed)
        return _summary(options, tally, before, after, elapsed) | {
            "joined_s": round(joined_s, 1), "working_share": round(working / max(1, options.agents), 4),
            "connections_lost": closed, "generator_cpu_share": round(generator_s / elapsed, 3),
            "server_cpu_s": round(_process_cpu_s(pool.servers[0].process.pid), 1),
        }  # fmt: skip
    finally:
        for agent in agents:
            agent.end()
        end(client)


def _summary(
    options: argparse.Namespace, tally: Tally, before: list[dict[str, float]], after: list[dict[str, float]],
    elapsed: float,
) -> dict[str, Any]:  # fmt: skip
    def grown(key: str) -> list[float]:
        return [new[key] - old[key] for old, new in zip(before, after, strict=True)]

    cpu_s, commits = grown("cpu_s"), grown("commits")
    leases = max(1, tally.leases)
    return {
        "agents": options.agents, "coordinators": len(after), "jobs": options.jobs, "store": options.store,
        "task_s": options.task_s, "seconds": round(elapsed, 1), "leases": tally.leases,
        "leases_per_s": round(tally.leases / elapsed, 1), "tasks_per_s": round(tally.tasks / elapsed, 1),
        "mean_lease_s": round(tally.busy_s / leases, 2), "messages_sent_per_s": round(tally.sent / elapsed, 1),
        "repeated": tally.repeated,
        "idle_pull_to_lease": percentiles(tally.idle_s), "ahead_pull_to_lease": percentiles(tally.ahead_s),
        "any_pull_to_lease": percentiles(tally.idle_s + tally.ahead_s), "hand_in_to_ack": percentiles(tally.ack_s),
        "coordinator_cpu_us_per_lease": round(1e6 * sum(cpu_s) / leases),
        "coordinator_cpu_share": [round(used / elapsed, 3) for used in cpu_s],
        "commits_per_lease": round(sum(commits) / leases, 3),
        "operations_per_commit": round(sum(grown("operations")) / max(1, sum(commits)), 2),
        "coordinator_rss_mb": [round(stats["rss_bytes"] / 1e6) for stats in after],
    }  # fmt: skip


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _process_cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


def _arguments() -> argparse.Namespace:
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
        "--per-coordinator", action="store_true", help="so many agents and jobs for each of the coordinators"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    if limit[1] < options.agents + 100:
        print(f"bench: {options.agents} agents need as many open files; the limit here is {limit[1]}", file=sys.stderr)
        return 2
    import uvloop

    results = []
    for count in (int(word) for word in options.coordinators.split(",")):
        busy = busy_share(1.0)
        with BenchPool(count, options.store) as pool:
            factor = count if options.per_coordinator else 1
            load = argparse.Namespace(**vars(options))
            load.agents, load.jobs = options.agents * factor, options.jobs * factor
            result = uvloop.run(_measure(pool, load)) | {"busy_share_before": round(busy, 3)}
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
