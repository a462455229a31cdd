"""python -m bench.scale.caller: one call after the other, for ever; a line each: when it was answered (seconds of the
monotonic clock), how long it took (seconds), and whether the answer was right."""

from __future__ import annotations

import sys
import time

from bench.scale.client import work


def main() -> int:
    item = 0
    while True:
        began = time.monotonic()
        answer = work.remote(item)
        now = time.monotonic()
        print(f"{now:.4f} {now - began:.4f} {answer == item}", flush=True)
        item += 1
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
