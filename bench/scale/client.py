"""python -m bench.scale.client TASKS JOBS SECONDS: so many maps at once over the pool of FALLOW_URL, read to their end.

Tasks take SECONDS each where a worker runs them. Prints a line for every second of results."""

from __future__ import annotations

import sys
import threading
import time

import fallow

app = fallow.App("scale")


@app.function
def work(item: int, seconds: float = 0.0) -> None:
    time.sleep(seconds)


def _read(tasks: int, seconds: float, counts: list[int], at: int) -> None:
    for _ in work.map(range(tasks), kwargs={"seconds": seconds}):
        counts[at] += 1


def main() -> int:
    tasks, jobs, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    counts = [0] * jobs
    threads = [threading.Thread(target=_read, args=(tasks, seconds, counts, at), daemon=True) for at in range(jobs)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        print(sum(counts), flush=True)
        time.sleep(1.0)
    print(sum(counts), "done", flush=True)
    return 0 if sum(counts) == tasks * jobs else 1


if __name__ == "__main__":
    sys.exit(main())
