"""The main job: a cross-validated model search on three nodes, one of which dies in the middle.

Run it with `scripts/demo`. It starts a pool on this machine, measures one node and then two on a sample, searches
with two nodes, lets a third join, kills one without warning, and shows what came of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("FALLOW_PROGRESS", "1")

import digits_grid
from demo_pool import DemoPool

import fallow

WARM_S = 0.4
WARM_LIMIT_S = 600.0


def say(words: str) -> None:
    print(words, flush=True)


def describe(configuration: dict[str, Any]) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in configuration.items() if name != "model")
    return f"{configuration['model']} ({settings})"


def wait_until_warm(names: set[str]) -> None:
    """Until each of these nodes has built the environment, loaded the data and done a task."""
    seen: set[str] = set()
    progress = os.environ["FALLOW_PROGRESS"]
    os.environ["FALLOW_PROGRESS"] = "0"
    deadline = time.monotonic() + WARM_LIMIT_S
    while not names <= seen:
        seen |= set(digits_grid.warm_up.map([WARM_S] * 2 * len(names), order_outputs=False))
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {sorted(seen)} of the nodes {sorted(names)} got to work")
    os.environ["FALLOW_PROGRESS"] = progress


def measure(sample: list[dict[str, Any]]) -> float:
    """Seconds that the sample takes on the nodes that are there."""
    started = time.monotonic()
    digits_grid.evaluate.for_each(sample)
    return time.monotonic() - started


class Search:
    """The search itself, with a node that joins and one that dies on the way."""

    def __init__(self, pool: DemoPool, configurations: list[dict[str, Any]]) -> None:
        self._pool = pool
        self._configurations = configurations
        self.results: list[dict[str, Any]] = []
        self.events: list[tuple[float, str]] = []
        self.seconds = 0.0
        self.info: Any = None

    def run(self) -> None:
        total = len(self._configurations)
        started = time.monotonic()
        joined = killed = False
        best = 0.0
        results = digits_grid.evaluate.map(self._configurations, order_outputs=False)
        for result in results:
            self.results.append(result)
            done = len(self.results)
            if result["score"] > best:
                best = result["score"]
                say(f"  {done:3d}/{total}  {best:.4f}  {describe(result['configuration'])}")
            if not joined and done >= total * 0.15:
                joined = True
                self._pool.join("node-3")
                self._note("node-3 joins")
            late = any(item["node"] == "node-3" for item in self.results[-40:])
            if not killed and done >= total * 0.5 and (late or done >= total * 0.75):
                killed = True
                self._pool.kill("node-2")
                self._note("node-2 dies")
        self.seconds = time.monotonic() - started
        self.info = fallow.job(results.job_id).status()

    def _note(self, words: str) -> None:
        self.events.append((time.time(), words))
        say(f"  ---- {words} ----")


def report(search: Search, final: dict[str, Any], one_s: float, two_s: float, sample: int, plot: Path) -> None:
    """The end of the story."""
    best = max(search.results, key=lambda result: result["score"])
    counts = search.info.counts
    spread = Counter(result["node"] for result in search.results)
    busy: Counter[str] = Counter()
    for result in search.results:
        busy[result["node"]] += result["ended"] - result["started"]
    say("")
    say(f"Best model     {describe(best['configuration'])}")
    say(f"               {best['score']:.4f} ± {best['spread']:.4f} in {digits_grid.FOLDS}-fold cross-validation")
    say(f"Held out       {final['accuracy']:.4f} on {final['held_out']} digits that the search never saw")
    say(f"Search         {len(search.results)} configurations in {search.seconds:.1f} s, each exactly once")
    for node in sorted(spread):
        share = spread[node] / len(search.results)
        say(f"  {node:<12} {spread[node]:4d} configurations ({share:4.0%}), {busy[node]:5.1f} s of work")
    lost = f"{counts.retried} in progress there ran again elsewhere, {counts.failed} failed"
    say(f"Node killed    node-2 had handed in {spread['node-2']}; {lost}")
    words = f"{sample} configurations in {one_s:.1f} s on one node, {two_s:.1f} s on two"
    held_up = "" if one_s <= 2.2 * two_s else " (more than two: other work on this machine held up the first)"
    say(f"Speed-up       {one_s / two_s:.2f} with two nodes: {words}{held_up}")
    say(f"Plot           {plot}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=Path("demo-out/digits.png"), help="where the picture goes")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th configuration, for a quick look")
    options = parser.parse_args()
    configurations = digits_grid.configurations()[:: options.every]
    sample = configurations[::6]

    say(f"A search over {len(configurations)} configurations. Starting a pool and the first node...")
    with DemoPool() as pool:
        pool.join("node-1")
        say("Building an environment with scikit-learn on the node...")
        wait_until_warm({"node-1"})
        say(f"Measuring one node on {len(sample)} configurations...")
        one_s = measure(sample)
        pool.join("node-2")
        wait_until_warm({"node-1", "node-2"})
        say("Measuring two nodes on the same...")
        two_s = measure(sample)
        say(f"  {one_s:.1f} s on one node, {two_s:.1f} s on two.")
        say("The search, on two nodes to begin with:")
        search = Search(pool, configurations)
        search.run()
        best = max(search.results, key=lambda result: result["score"])
        final = digits_grid.final_check.remote(best["configuration"])
    import digits_plot

    digits_plot.draw(options.plot, search.results, final, search.events)
    report(search, final, one_s, two_s, len(sample), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
