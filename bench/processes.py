"""The processes of one measurement: found by a mark in their environment, so that those which left the process tree
(daemons, children of dead parents) count too, and are ended when the measurement is over. Linux."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

MARK = "BENCH_RUN"


class Marked:
    """All processes whose environment holds BENCH_RUN=`run_id`."""

    def __init__(self, run_id: str) -> None:
        self._needle = f"{MARK}={run_id}".encode()
        self._known: dict[tuple[int, str], bool] = {}

    def pids(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                started = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[19]
                key = (int(name), started)
                if not self._known.get(key, False):
                    # A process that just forked may still show its parent's environment or none: ask again later.
                    environment = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                    self._known[key] = self._needle in environment
                if self._known[key]:
                    found.append(int(name))
            except (OSError, IndexError):
                continue
        return found

    def memory_bytes(self) -> int:
        """Proportional set size of all of them together: shared pages count once."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, ValueError, IndexError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
                        break
        return total

    def end(self, grace_s: float) -> list[str]:
        """Give them `grace_s` to end by themselves, then SIGKILL what is left; the names of what was left."""
        deadline = time.monotonic() + grace_s
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        left = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                left.append(Path(f"/proc/{pid}/comm").read_text().strip())
                os.kill(pid, signal.SIGKILL)
        return left


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def touch_free_memory(size_bytes: int) -> None:
    """Write to that much free memory and give it back, so that no measurement pays for the virtual machine's first
    use of a page."""
    block = 64 << 20
    held = []
    for _ in range(size_bytes // block):
        piece = bytearray(block)
        for offset in range(0, block, 4096):
            piece[offset] = 1
        held.append(piece)
    held.clear()


def busy_share(seconds: float) -> float:
    """Share of all CPUs that others use, watched for so long."""

    def read() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    total, idle = read()
    time.sleep(seconds)
    total_after, idle_after = read()
    return 1.0 - (idle_after - idle) / max(1, total_after - total)
