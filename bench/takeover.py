"""python -m bench.takeover --repeat 4: how long a pool is without what was killed.

Owner: three coordinators on PostgreSQL; the one that owns a running job gets SIGKILL. Measured from there to the next
owner's first lease, first acknowledgement of a hand-in and first answer to a client. NATS: one server of a cluster of
three gets SIGKILL while real agents answer one call after another; measured is the longest call that was under way in
the seconds after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.processes import busy_share
from bench.scale.link import open_link
from bench.scale.pool import HOST, TOKEN, BenchPool, end
from bench.scale.small_agent import SmallAgent, Tally
from fallow.model.ids import JobId
from fallow.wire import messages as wire
from fallow.wire import subjects
from fallow.wire.connection import Connection, connect

AGENTS = 20
TASK_S = 0.1
PROBE_S = 0.02
DEADLINE_S = 60.0


async def _until(holds: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {DEADLINE_S:g} s for {what}")
        await asyncio.sleep(0.005)


class Watch:
    """Who owns the job, by the owners' own reports, and when messages of a newer epoch came."""

    def __init__(self) -> None:
        self.owner = ""
        self.job_id: JobId | None = None
        self.epoch = 0
        self.killed_s = float("inf")
        self.first_s: dict[str, float] = {}

    def report(self, message: Any, _reply: str) -> None:
        if isinstance(message, wire.OwnerReport):
            for job in message.jobs:
                if job.info.state in ("open", "running") and job.info.epoch >= self.epoch:
                    self.owner, self.job_id, self.epoch = message.owner, job.spec.job_id, job.info.epoch

    def saw(self, what: str, epoch: int, than: int) -> None:
        if epoch > than:
            self.first_s.setdefault(what, time.monotonic() - self.killed_s)


async def _owners(pool: BenchPool, repeat: int) -> list[dict[str, float]]:
    watch, tally = Watch(), Tally()
    connection = await connect(pool.address, "bench")
    await connection.subscribe(subjects.OWNERS, watch.report)
    python = ".".join(platform.python_version_tuple()[:2])
    agents = []
    before = 0

    def observed(agent: SmallAgent) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            if isinstance(message, wire.Lease):
                watch.saw("lease_s", message.epoch, before)
            elif isinstance(message, wire.HandInAck):
                watch.saw("ack_s", message.epoch, before)
            agent.receive(message)

        return receive

    for number in range(AGENTS):
        agent = SmallAgent(number, (python,), TASK_S, tally)
        agent.begin(await open_link(HOST, pool.servers[0].port, TOKEN, observed(agent)))
        agents.append(agent)
    pool.client(10_000_000, 1, TASK_S)
    found = []
    try:
        await _until(lambda: watch.owner and tally.leases > 3 * AGENTS, "a job that runs")
        for _ in range(repeat):
            await asyncio.sleep(4.0)  # everybody has reported, and the killed one is back
            assert watch.job_id is not None
            before, watch.first_s = watch.epoch, {}
            victim = next(c for c in pool.coordinators if c.owner == watch.owner)
            watch.killed_s = time.monotonic()
            victim.process.send_signal(signal.SIGKILL)
            probing = asyncio.ensure_future(_probe(connection, watch, before))
            await _until(lambda: len(watch.first_s) == 3, "the next owner")
            await probing
            found.append({name: round(seconds, 3) for name, seconds in sorted(watch.first_s.items())})
            await asyncio.to_thread(victim.process.wait)
            await asyncio.to_thread(victim.start)
    finally:
        for agent in agents:
            agent.end()
        await connection.close()
    return found


async def _probe(connection: Connection, watch: Watch, before: int) -> None:
    """Ask like a client until the next owner answers."""
    assert watch.job_id is not None
    while "answer_s" not in watch.first_s:
        try:
            answer = await connection.request(subjects.job(watch.job_id), wire.GetJob(watch.job_id), 0.25)
            watch.saw("answer_s", answer.epoch, before)
        except TimeoutError:
            pass
        await asyncio.sleep(PROBE_S)


def _servers(pool: BenchPool, repeat: int) -> list[dict[str, Any]]:
    for name in ("one", "two"):
        pool.agent(name, 1)
    caller = subprocess.Popen(
        [sys.executable, "-m", "bench.scale.caller"],
        env=pool.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pool.callback(end, caller)
    assert caller.stdout is not None
    for _ in range(200):
        if not caller.stdout.readline():
            raise SystemExit("bench: calls do not run")
    found = []
    for kill in range(repeat):
        server = pool.servers[kill % len(pool.servers)]
        killed_s = time.monotonic()
        server.process.kill()
        server.process.wait()
        longest, wrong, calls, now = 0.0, 0, 0, killed_s
        while now < killed_s + 5.0:
            line = caller.stdout.readline().split()
            if not line:
                raise SystemExit("bench: the client ended")
            now, took = float(line[0]), float(line[1])
            if now >= killed_s:
                longest, calls, wrong = max(longest, took), calls + 1, wrong + (line[2] != b"True")
        found.append({"longest_call_s": round(longest, 3), "calls": calls, "wrong": wrong})
        server.start()
        server.wait()
        time.sleep(3.0)
        while float(caller.stdout.readline().split()[0]) < time.monotonic() - 0.1:
            pass
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.takeover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=4, help="kills of each")
    parser.add_argument("--store", default="postgresql", help="postgresql, or a URL")
    parser.add_argument("--only", choices=("owner", "nats"), default="", help="kill one kind alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main() -> int:
    options = arguments().parse_args()
    result: dict[str, Any] = {"busy_share_before": round(busy_share(1.0), 3)}
    if options.only != "nats":
        with BenchPool(3, options.store) as pool:
            kills = asyncio.run(_owners(pool, options.repeat))
        result["owner_killed"] = kills
        for name in ("lease_s", "ack_s", "answer_s"):
            ordered = sorted(kill[name] for kill in kills)
            result[f"owner_{name}"] = {"p50": ordered[len(ordered) // 2], "max": ordered[-1]}
    if options.only != "owner":
        with BenchPool(1, "sqlite", servers=3) as pool:
            servers = _servers(pool, options.repeat)
        result["nats_killed"] = servers
        result["nats_longest_call_s"] = max(kill["longest_call_s"] for kill in servers)
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{k:22} {v}" for k, v in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
