"""python -m bench.far --seconds 40: a node behind a slow link that is cut now and then.

The agent reaches the pool through a proxy that adds a round trip of 150 ms, carries 20 Mbit/s, and ends all connections
every so often. What is printed: how much of the time its workers ran tasks, and whether every result came, once.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from typing import Any

from bench.processes import busy_share
from bench.scale.pool import BenchPool
from bench.scale.slow_link import SlowLink


def _measure(pool: BenchPool, options: argparse.Namespace) -> dict[str, Any]:
    link = SlowLink(pool.servers[0].port, options.round_trip_s / 2, options.mbit_per_s * 1e6 / 8)
    pool.callback(link.close)
    pool.agent("far", options.slots, link.port)
    total = int(options.slots * options.seconds / options.task_s)
    client = pool.client(total, 1, options.task_s, every_s=0.1)
    lines: list[list[str]] = []
    assert client.stdout is not None

    def read() -> None:
        for line in client.stdout or ():
            lines.append(line.decode().split())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    seed = random.Random(options.seed)
    cuts, next_cut = 0, time.monotonic() + options.cut_every_s * seed.uniform(0.5, 1.5)
    deadline = time.monotonic() + options.seconds * 2 + 30
    while client.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        if options.cut_every_s and time.monotonic() > next_cut:
            cuts += bool(link.cut())
            next_cut = time.monotonic() + options.cut_every_s * seed.uniform(0.5, 1.5)
    reader.join(5.0)
    first = next((float(line[0]) for line in lines if int(line[1]) > 0), 0.0)
    whole = [(float(line[0]), int(line[1])) for line in lines]
    done_at, count = whole[-1]
    begun_count = next((number for _, number in whole if number > 0), 0)
    busy = (count - begun_count) * options.task_s / (options.slots * max(0.001, done_at - first))
    return {
        "slots": options.slots, "task_s": options.task_s, "round_trip_s": options.round_trip_s,
        "mbit_per_s": options.mbit_per_s, "cuts": cuts, "seconds": round(done_at - first, 1), "results": count,
        "lost": total - count, "wrong": int(lines[-1][2]), "complete": client.poll() == 0,
        "busy_share": round(busy, 3), "link_kbytes": round(link.bytes / 1000),
    }  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.far", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="of work for every slot")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--task-s", type=float, default=0.05, help="seconds that a task takes")
    parser.add_argument("--round-trip-s", type=float, default=0.15)
    parser.add_argument("--mbit-per-s", type=float, default=20.0)
    parser.add_argument("--cut-every-s", type=float, default=12.0, help="about; 0: never")
    parser.add_argument("--seed", type=int, default=1, help="of the times of the cuts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main() -> int:
    options = arguments().parse_args()
    busy = busy_share(1.0)
    with BenchPool() as pool:
        result = _measure(pool, options) | {"busy_share_before": round(busy, 3)}
    print(json.dumps(result, indent=1) if options.json else "\n".join(f"{k:20} {v}" for k, v in result.items()))
    return 0 if result["complete"] else 1


if __name__ == "__main__":
    sys.exit(main())
