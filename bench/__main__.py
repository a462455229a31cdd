"""python -m bench: Fallow and its peers on the same work in one run.

Each peer has a virtual environment of its own under bench-out/envs, made on demand; each measurement runs in a process
of its own. Examples:

    python -m bench --quick
    python -m bench --rows map,call --peers fallow,pool,ray
    python -m bench --rows memory --peers fallow --memory-sizes 1e6,1e7,1e8
    python -m bench --blocks

How far a pool goes is measured by programs of their own, each with its --help:

    python -m bench agents --agents 1000
    python -m bench takeover
    python -m bench handover
    python -m bench far

What the owner's return, a rest without work and the sandbox of strangers' code cost:

    python -m bench owner
    python -m bench rest
    python -m bench sandbox
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import blocks
from bench.measure import Measurement
from bench.peers import NAMES
from bench.plan import Settings, run_rows
from bench.plot import write_plot
from bench.processes import busy_share
from bench.report import as_json, markdown, print_report, write_json, write_text
from bench.rows import ROW_NAMES, ROWS

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("agents", "takeover", "handover", "far", "owner", "rest", "sandbox")


def _names(text: str, known: tuple[str, ...], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise SystemExit(f"bench: no {what} {name!r}. There are: {', '.join(known)}.")
    return names


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--rows", default=",".join(ROW_NAMES), help=f"of {', '.join(ROW_NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs; targets are judged all the same")
    parser.add_argument("--repeat", type=int, help="runs of each measurement; the median counts")
    parser.add_argument("--minutes", type=float, help="what is not done by then is left out, and the table says so")
    parser.add_argument(
        "--memory-sizes", default="", help="tasks of the memory row for Fallow; peers run the first, or fewer"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: bench-out/bench.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="default: bench-out/bench.png")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables for the documents there")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out", help="folder of environments and results")
    parser.add_argument(
        "--python", action="append", default=[], metavar="PEER=PATH", help="use this interpreter for a peer"
    )
    parser.add_argument("--blocks", action="store_true", help="measure the building blocks of this machine instead")
    return parser


def _ended_by_signal(number: int, frame: object) -> None:
    """Unwinds, so that what runs is ended too."""
    raise SystemExit(128 + number)


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] in PROGRAMS:
        program = importlib.import_module(f"bench.{sys.argv.pop(1)}")
        return int(program.main())
    chosen = arguments().parse_args()
    signal.signal(signal.SIGTERM, _ended_by_signal)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if chosen.blocks:
        blocks.print_blocks(console)
        return 0
    rows = [row for row in ROWS if row.name in _names(chosen.rows, ROW_NAMES, "row")]
    peers = _names(chosen.peers, NAMES, "peer")
    default_sizes = "1e5,1e6" if chosen.quick else "1e6,1e7,1e8"
    sizes = tuple(int(float(size)) for size in (chosen.memory_sizes or default_sizes).split(","))
    pythons = {peer: Path(path).absolute() for peer, _, path in (pair.partition("=") for pair in chosen.python)}
    deadline = time.monotonic() + chosen.minutes * 60 if chosen.minutes else None
    settings = Settings(chosen.quick, chosen.out.resolve(), sizes, pythons, chosen.repeat, deadline)
    json_path = chosen.json or settings.out / "bench.json"
    busy = busy_share(1.0)
    if busy > 0.1:
        console.print(f"Other programs use {busy:.0%} of this machine: times and ratios below will suffer from it.")

    def write(found: Sequence[Measurement]) -> None:
        done = [row for row in rows if any(one.row == row.name for one in found)]
        write_json(json_path, as_json(done, found, chosen.quick) | {"busy_share_before": round(busy, 3)})
        if chosen.markdown:
            write_text(chosen.markdown, markdown(done, found))

    measurements = run_rows(
        rows, peers, settings, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True), write
    )
    console.print()
    print_report(rows, measurements, console)
    plot_path = chosen.plot or settings.out / "bench.png"
    drawn = write_plot(plot_path, rows, measurements)
    console.print(
        f"Written: {json_path}" + (f", {plot_path}" if drawn else " (no plot: no values to draw, or no matplotlib)")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
