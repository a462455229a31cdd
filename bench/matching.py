"""How long a plan takes: `python -m bench.matching [--nodes 100000] [--jobs 1000] [--json]`.

A pool of several classes of nodes (sizes, memory, some with GPUs) and jobs of several needs, all wanting more than
there is. Times are milliseconds of CPU time on one core, so that what else runs on the machine counts little; garbage
is collected as often as in a coordinator. Rows of single events are medians and maxima; each event is followed by its
plan.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable

from fallow.coordinator.main import GC_THRESHOLDS
from fallow.core.demand import JobDemand, NodeView
from fallow.core.matching import plan
from fallow.core.planner import Planner
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, EnvSpec, GpuSpec, JobKind, JobSpec, Resources
from fallow.model.node import Device, NodeSpec

GIB = 1 << 30
CARDS = (("NVIDIA GeForce RTX 3060", 12), ("NVIDIA GeForce RTX 4090", 24), ("NVIDIA A10", 24))


def make_node(index: int, chance: random.Random) -> NodeView:
    slots = chance.choice((1, 2, 2, 4))
    card = chance.choice(CARDS) if chance.random() < 0.3 else None
    devices = (Device("cuda", card[0], card[1] * GIB),) if card else ()
    memory = chance.choice((8, 16, 16, 32, 64)) * GIB - chance.randrange(GIB // 4)
    spec = NodeSpec(
        NodeId(f"node-{index:06d}"), f"n{index}", slots, slots, memory, 1 << 40, "linux", ("3.11",), "1", devices
    )
    return NodeView(spec, {})


def make_job(index: int, chance: random.Random) -> JobDemand:
    gpu = GpuSpec(1, chance.choice((8, 20)) * GIB) if chance.random() < 0.1 else GpuSpec()
    needs = Resources(chance.choice((1, 1, 1, 2)), chance.choice((0, 0, 4, 12)) * GIB, gpu)
    spec = JobSpec(
        JobId(f"job-{index:06d}"),
        f"job {index}",
        JobKind.MAP,
        ClientId("c"),
        Blob(Digest(""), 0, b""),
        env=EnvSpec(python="3.11"),
        resources=needs,
    )
    return JobDemand(spec, chance.choice((5, 50, 500, 100_000)), served=chance.random() * 100, order=index)


def timed_ms(what: Callable[[], object]) -> float:
    started = time.process_time()
    what()
    return (time.process_time() - started) * 1e3


def measure(node_count: int, job_count: int, events: int, seed: int) -> dict[str, float]:
    chance = random.Random(seed)
    nodes = [make_node(i, chance) for i in range(node_count)]
    jobs = [make_job(i, chance) for i in range(job_count)]
    gc.collect()
    gc.freeze()  # the snapshot is not part of what is measured; a coordinator freezes its start-up objects too
    gc.set_threshold(*GC_THRESHOLDS)
    rows = {"full_ms": min(timed_ms(lambda: plan(jobs, nodes)) for _ in range(3))}
    planner = Planner()
    for job in jobs:
        planner.put_job(job)
    planner.put_nodes(nodes)
    moves = dict(planner.plan().moves)
    rows["slots"] = sum(map(len, moves.values()))
    told = [NodeView(view.spec, dict(moves.get(view.spec.node_id, ()))) for view in nodes]
    gc.collect()
    gc.freeze()
    rows["full_told_ms"] = min(timed_ms(lambda: plan(jobs, told)) for _ in range(2))

    def node_goes(i: int) -> None:
        planner.remove_node(nodes[i].spec.node_id)

    def node_comes(i: int) -> None:
        planner.put_node(nodes[i])

    def job_ends(i: int) -> None:
        planner.remove_job(jobs[i].spec.job_id)

    def job_arrives(i: int) -> None:
        planner.put_job(jobs[i])

    def want_changes(i: int) -> None:
        jobs[i].want = 0 if jobs[i].want else 100_000
        planner.put_job(jobs[i])

    kinds: dict[str, tuple[int, Callable[[int], None]]] = {
        "node_goes": (node_count, node_goes),
        "node_comes": (node_count, node_comes),
        "job_ends": (job_count, job_ends),
        "job_arrives": (job_count, job_arrives),
        "want_changes": (job_count, want_changes),
    }
    for name, (count, event) in kinds.items():
        times = []
        for at in range(events):

            def both(i: int = at * 7919 % count, event: Callable[[int], None] = event) -> None:
                event(i)
                planner.plan()

            times.append(timed_ms(both))
        rows[f"{name}_ms"] = statistics.median(times)
        rows[f"{name}_max_ms"] = max(times)
    gc.unfreeze()
    return rows


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--events", type=int, default=20, help="events of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    args = arguments().parse_args()
    rows = measure(args.nodes, args.jobs, args.events, args.seed)
    if args.json:
        print(json.dumps({"nodes": args.nodes, "jobs": args.jobs, **rows}))
        return
    print(f"{args.nodes:,} nodes, {args.jobs:,} jobs, {rows.pop('slots'):,.0f} slots assigned")
    print(f"  full plan        {rows.pop('full_ms'):8.1f} ms (target 1,000)")
    print(f"  the same, told   {rows.pop('full_told_ms'):8.1f} ms (nodes have what they were assigned: a new leader's)")
    for name in ("node_goes", "node_comes", "job_ends", "job_arrives", "want_changes"):
        words = name.replace("_", " ")
        print(f"  {words:<16} {rows[name + '_ms']:8.1f} ms median, {rows[name + '_max_ms']:.1f} ms most (target 50)")


if __name__ == "__main__":
    main()
