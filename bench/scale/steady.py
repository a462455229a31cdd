"""python -m bench.scale.steady map|wait: a map without end; a line for each result, as they come: when the script had
it (seconds of the monotonic clock), and whether it was new. `wait`: one that no node may run."""

from __future__ import annotations

import sys
import time

import fallow

TASKS = 10_000_000
app = fallow.App("steady")


@app.function(speculate=False)
def vary(item: int) -> int:
    """Between one and two seconds: each is a lease of its own, and they do not end in step."""
    time.sleep(1.0 + item * 7919 % 100 / 100)
    return item


def main() -> int:
    # A call that finds every slot in a task waits for the end of one: the calls have the other node.
    options = {"max_nodes": 1} if sys.argv[1] == "map" else {"gpu": "80GB"}
    function = vary.with_options(**options)
    seen: set[int] = set()
    for result in function.map(range(TASKS), order_outputs=False):
        print(f"{time.monotonic():.4f} {result not in seen}", flush=True)
        seen.add(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
