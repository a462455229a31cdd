"""python -m tests.chaos [--seed N] [--minutes M] [--every S] [--json FILE] [--markdown FILE]; see scripts/chaos."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.chaos.client import KINDS
from tests.chaos.markdown import markdown
from tests.chaos.run import Options, as_json, run
from tests.engines.postgres import programs


def _end(*_: object) -> None:
    """Everything is ended, whoever is impatient meanwhile."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(130)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="A large pool of real processes under load, while things go wrong."
    )
    parser.add_argument("--seed", type=int, default=1, help="which faults, when and where (default 1)")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults are made (default 2)")
    parser.add_argument("--every", type=float, default=8.0, metavar="S", help="seconds between faults (default 8)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only faults whose words hold this")
    parser.add_argument("--load", default=",".join(KINDS), help=f"kinds of customers (default all: {','.join(KINDS)})")
    parser.add_argument("--no-faults", action="store_true", help="only the load, to compare")
    parser.add_argument("--s3", action="store_true", help="blobs in a SeaweedFS, which is killed and stopped as well")
    parser.add_argument("--json", default="", metavar="FILE", help="write the report there too")
    parser.add_argument("--markdown", default="", metavar="FILE", help="write tables for documents there")
    parser.add_argument("--keep", action="store_true", help="keep all logs, even where nothing is wrong")
    parser.add_argument("--trace", action="store_true", help="write down every message that passes, and keep it")
    words = parser.parse_args()
    if programs() is None:
        print("chaos needs a PostgreSQL: scripts/setup installs one", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _end)
    report = run(
        Options(
            seed=words.seed,
            seconds=words.minutes * 60,
            every_s=words.every,
            kinds=tuple(words.load.split(",")),
            only=words.only,
            keep=words.keep or words.trace,
            trace=words.trace,
            faults=not words.no_faults,
            s3=words.s3,
            say=lambda line: print(line, flush=True),
        )
    )
    print("\n".join(report.lines()))
    if words.json:
        Path(words.json).write_text(as_json(report))
    if words.markdown:
        chosen = [word for word in sys.argv[1:] if word not in ("--json", words.json, "--markdown", words.markdown)]
        Path(words.markdown).write_text(markdown(report, " ".join(["scripts/chaos", *chosen])))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
