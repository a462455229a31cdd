"""`scripts/sim`: run a pool in virtual time and print what came of it."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import fields
from pathlib import Path

from fallow.model.errors import SettingError
from fallow.sim.options import Options
from fallow.sim.truth import Broken
from fallow.sim.world import World

EXAMPLES = """examples:
  scripts/sim                                        1,000 nodes for two hours, with faults
  scripts/sim --nodes 10000 --hours 24 --jobs 60     a day of 10,000 nodes that come and go
  scripts/sim --nodes 100000 --hours 0.5             100,000 nodes for half an hour
  scripts/sim --seed 7 --fault-rate 600 --nodes 50 --task-s 5 --hours 0.2     rough weather, small pool
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "scripts/sim", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Options()
    for option in fields(Options):
        value = getattr(defaults, option.name)
        name = f"--{option.name.replace('_', '-')}"
        parser.add_argument(name, type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--json", action="store_true", help="print JSON, with samples over time")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw slots and tasks over time (needs matplotlib)"
    )
    given = vars(parser.parse_args(arguments))
    as_json, plot = given.pop("json"), given.pop("plot")
    try:
        world = World(Options(**given))
    except SettingError as error:
        parser.error(str(error))
    show = None
    if sys.stderr.isatty():
        until = world.options.hours * 3600

        def show(now: float) -> None:
            print(f"\r{now / 3600:.1f} h, {now / until:.0%}", end="", file=sys.stderr, flush=True)

    gc.disable()  # a run makes no cycles: nothing would be found, however often all objects were looked through
    try:
        summary = world.run(show)
    except AssertionError as error:
        kind = "an invariant is broken" if isinstance(error, Broken) else "an assertion of the core failed"
        again = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in given.items())
        print(f"{kind} at {world.clock.now:.3f} s: {error}\nrun it again: scripts/sim {again}", file=sys.stderr)
        return 1
    if show is not None:
        print("\r", end="", file=sys.stderr)
    print(json.dumps(summary.to_json()) if as_json else summary.to_text())
    if plot is not None:
        from fallow.sim.plot import draw

        draw(summary, plot)
        print(f"drawn into {plot}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
