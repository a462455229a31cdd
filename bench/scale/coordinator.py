"""python -m bench.scale.coordinator ADDRESS STORE FOLDER OWNER: a real coordinator that counts its commits.

Every half second FOLDER/OWNER.json gets {"commits", "operations", "cpu_s", "rss_bytes"}."""

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


def _report(path: Path, counted: Counted) -> None:
    while True:
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        content = {
            "commits": counted.commits,
            "operations": counted.operations,
            "cpu_s": used.ru_utime + used.ru_stime,
            "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        }
        path.with_suffix(".new").write_text(json.dumps(content))
        path.with_suffix(".new").rename(path)
        time.sleep(0.5)


def main() -> int:
    address, store_url, folder, owner = sys.argv[1:]
    open_plainly = fallow.store.open.open_store

    def open_counted(url: str) -> Any:
        counted = Counted(open_plainly(url))
        threading.Thread(target=_report, args=(Path(folder) / f"{owner}.json", counted), daemon=True).start()
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
