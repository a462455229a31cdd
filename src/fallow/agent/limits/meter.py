"""What the work uses of the machine: processor time and memory of all processes below the agent's zygotes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from msgspec import Struct

from fallow.agent.memory import private_bytes


class Use(Struct, frozen=True):
    """`cpu_share`: of all processors together, since the last measurement; None before there were two."""

    cpu_share: float | None = None
    memory_bytes: int = 0
    memory_by_worker: dict[int, int] = {}
    """By the worker's pid, with all that it started."""


class Meter:
    """Costs some milliseconds a measurement: only to be used where a limit is set and something runs."""

    def __init__(self, cpu_count: int) -> None:
        self._cpu_count = max(1, cpu_count)
        self._last: tuple[float, dict[int, float]] | None = None

    def measure(self, zygotes: Iterable[int], workers: Iterable[int]) -> Use:
        """`zygotes` and `workers`: their pids. Processes that end between two measurements count up to the last one
        in which they were seen."""
        import psutil

        parents: dict[int, int] = _parents()
        wanted, roots = set(workers), {pid for pid in zygotes if pid}
        times: dict[int, float] = {}
        memory: dict[int, int] = {}
        for pid in parents:
            owner = _owner(pid, parents, wanted, roots)
            if owner is None:
                continue
            try:
                spent = psutil.Process(pid).cpu_times()
            except psutil.Error:
                continue
            times[pid] = spent.user + spent.system
            if owner:
                memory[owner] = memory.get(owner, 0) + private_bytes(pid)
        now = time.monotonic()
        share = None
        if self._last is not None and now > self._last[0]:
            before = self._last[1]
            used = sum(max(0.0, spent - before.get(pid, 0.0)) for pid, spent in times.items())
            share = used / (now - self._last[0]) / self._cpu_count
        self._last = (now, times)
        return Use(share, sum(memory.values()), memory)

    def forget(self) -> None:
        """Nothing is measured for a while: the next measurement begins anew."""
        self._last = None


def _owner(pid: int, parents: dict[int, int], workers: set[int], zygotes: set[int]) -> int | None:
    """The worker that a process belongs to; 0: to a zygote alone; None: to neither."""
    at, steps = pid, 0
    found = 0
    while at > 1 and steps < 256:
        if at in workers and not found:
            found = at
        if at in zygotes:
            return found
        at = parents.get(at, 0)
        steps += 1
    return found or None


def _parents() -> dict[int, int]:
    import psutil

    return {process.pid: process.info["ppid"] or 0 for process in psutil.process_iter(["ppid"])}
