"""python -m bench.scale.steady TASK_S: a map without end; a line for each result: when the script had it (seconds of
the monotonic clock), and whether it was the next one."""

from __future__ import annotations

import sys
import time

from bench.scale.client import work

TASKS = 100_000_000


def main() -> int:
    seconds = float(sys.argv[1])
    for number, result in enumerate(work.map(range(TASKS), kwargs={"seconds": seconds})):
        print(f"{time.monotonic():.4f} {result == number}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
