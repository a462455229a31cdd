"""python -m bench.scale.coordinator ADDRESS STORE FOLDER OWNER: a real coordinator that counts its commits.

Every half second FOLDER/OWNER.json gets {"at_s", "commits", "operations", "cpu_s", "rss_bytes",
"wakeups", "threads"}; the last
by thread: seconds of CPU time, and seconds for which it waited for a processor. With BENCH_TIMELINE=1 in the
environment, FOLDER/OWNER.timeline.json gets what bench.scale.watch saw once FOLDER/OWNER.timeline is there."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fallow.store.open
from bench.scale.watch import LoopWatch
from fallow.coordinator.main import CoordinatorOptions, run_coordinator
from fallow.wire.address import parse_address


class Counted:
    """A store, and how often it was written to."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.commits = 0
        self.operations = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, operations: Any) -> Any:
        if operations:
            self.commits += 1
            self.operations += len(operations)
        return self._store.commit(operations)


def threads() -> dict[str, tuple[float, float]]:
    """By the name of the thread: seconds of CPU time, and seconds for which it waited for a processor."""
    found: dict[str, tuple[float, float]] = {}
    for thread in threading.enumerate():
        try:
            ran, waited, _ = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
        except OSError:
            continue  # it has just ended
        name = thread.name.partition("_")[0]
        before = found.get(name, (0.0, 0.0))
        if thread is not threading.current_thread():
            found[name] = (before[0] + int(ran) / 1e9, before[1] + int(waited) / 1e9)
    return found


def _report(path: Path, counted: Counted, watch: LoopWatch | None) -> None:
    asked = path.with_suffix(".timeline")
    while True:
        if watch is not None and asked.exists():
            asked.unlink()
            watch.dump(path.with_suffix(".timeline.json"))
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        content = {
            "at_s": time.monotonic(),
            "commits": counted.commits,
            "operations": counted.operations,
            "cpu_s": used.ru_utime + used.ru_stime - time.thread_time(),  # without what this thread costs
            "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            "wakeups": used.ru_nvcsw,
            "threads": threads(),
        }
        path.with_suffix(".new").write_text(json.dumps(content))
        path.with_suffix(".new").rename(path)
        time.sleep(0.5)


def main() -> int:
    address, store_url, folder, owner = sys.argv[1:]
    path = Path(folder) / f"{owner}.json"
    watch = LoopWatch() if os.environ.get("BENCH_TIMELINE") else None
    if watch is not None:
        watch.install()
    open_plainly = fallow.store.open.open_store

    def open_counted(url: str) -> Any:
        counted = Counted(open_plainly(url))
        threading.Thread(target=_report, args=(path, counted, watch), name="report", daemon=True).start()
        return counted

    fallow.store.open.open_store = open_counted
    return run_coordinator(
        CoordinatorOptions(
            parse_address(address), store_url, Path(folder) / "blobs", "bench", owner_name=owner,
            ready=lambda: print("ready", flush=True),
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
