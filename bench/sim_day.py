"""How far the simulator reaches: `python -m bench.sim_day [--only day|large|scaling] [--json]`.

day: a day of 10,000 nodes that come and go (target: under 2 minutes). large: 100,000 nodes for half an hour, and on to
the end of every job. scaling: CPU time per event at 1,000, 3,000 and 10,000 nodes, which must not grow with them.
Each run is a process of its own, so that memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

RUNS = {
    "day": [("a day of 10,000 nodes", ["--nodes", "10000", "--hours", "24", "--jobs", "60"])],
    "large": [("half an hour of 100,000 nodes", ["--nodes", "100000", "--hours", "0.5", "--jobs", "5"])],
    "scaling": [
        (f"{count:,} nodes for two hours", ["--nodes", str(count), "--hours", "2", "--jobs", "10"])
        for count in (1_000, 3_000, 10_000)
    ],
}

HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""As in scripts/sim."""


def run(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "fallow.sim", "--json", *arguments],
        env={**os.environ, **HUGE_PAGES},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    summary: dict[str, Any] = json.loads(done.stdout)
    del summary["samples"]
    return summary


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(RUNS), help="one kind of run; otherwise all")
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    args = arguments().parse_args()
    for kind in [args.only] if args.only else RUNS:
        for words, given in RUNS[kind]:
            found = run(given)
            if args.json:
                print(json.dumps({"run": words, **found}), flush=True)
                continue
            print(
                f"{words}: {found['wall_s']:.0f} s ({found['cpu_s']:.0f} s of CPU), {found['peak_memory_mb']:.0f} MB, "
                f"{found['events']:,} events of {found['cpu_s'] / found['events'] * 1e6:.0f} µs, "
                f"{found['tasks']:,} tasks, utilisation {found['utilisation']:.1%}, "
                f"plans of {found['mean_plan_ms']:.2f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
