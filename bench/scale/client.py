"""python -m bench.scale.client TASKS JOBS SECONDS [EVERY]: so many maps at once over the pool of FALLOW_URL.

Tasks take SECONDS each where a worker runs them. Every EVERY seconds a line: seconds of the monotonic clock, results so
far, and how many of them were wrong; at the end the word 'done'."""

from __future__ import annotations

import sys
import threading
import time

import fallow

app = fallow.App("scale")


@app.function
def work(item: int, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return item


def _read(tasks: int, seconds: float, counts: list[int], wrong: list[int], at: int) -> None:
    for expected, item in enumerate(work.map(range(tasks), kwargs={"seconds": seconds})):
        counts[at] += 1
        # Agents without workers answer None.
        wrong[at] += item is not None and item != expected


def main() -> int:
    tasks, jobs, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    every_s = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
    counts, wrong = [0] * jobs, [0] * jobs
    readers = [
        threading.Thread(target=_read, args=(tasks, seconds, counts, wrong, at), daemon=True) for at in range(jobs)
    ]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        print(f"{time.monotonic():.3f} {sum(counts)} {sum(wrong)}", flush=True)
        time.sleep(every_s)
    print(f"{time.monotonic():.3f} {sum(counts)} {sum(wrong)} done", flush=True)
    return 0 if sum(counts) == tasks * jobs and not any(wrong) else 1


if __name__ == "__main__":
    sys.exit(main())
