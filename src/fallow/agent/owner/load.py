"""What other programs do: their share of the CPU, and whether the named ones run."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable

import psutil

from fallow.agent.owner.sensor import Draft, Failed, Sensor

WINDOW_S = 4.0
"""The share is a mean over so long: a program that starts is no load yet."""
RECHECK_S = 5.0
"""A process changes its name when it becomes another program: young ones are looked at again."""
COMM_CHARS = 15
READ_BYTES = 1 << 16


def tree_cpu_s(roots: Iterable[int]) -> float:
    """CPU time of these processes and their descendants, with that of children which have ended."""
    total, todo, seen = 0.0, list(roots), set()
    while todo:
        pid = todo.pop()
        if pid in seen:
            continue
        seen.add(pid)
        if os.path.isdir("/proc/self/task"):
            spent, children = _of_proc(pid)
            total += spent
            todo += children
            continue
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            todo += [child.pid for child in process.children()]
        except psutil.Error:
            continue
        total += sum(times[:4])
    return total


def _of_proc(pid: int) -> tuple[float, list[int]]:
    try:
        text = _read(f"/proc/{pid}/stat")
        fields = text[text.rindex(b")") + 2 :].split()
        spent = sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
        children: list[int] = []
        for task in os.listdir(f"/proc/{pid}/task"):
            children += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
        return spent, children
    except (OSError, ValueError):
        return 0.0, []


def _read(path: str) -> bytes:
    """By three system calls: a look costs hundreds otherwise."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, READ_BYTES)
    finally:
        os.close(file)


class ForeignCpu(Sensor):
    """The share of all processors that is used by what the agent did not start."""

    name = "CPU load"
    every_s = 1.0

    def __init__(self, roots: Callable[[], Iterable[int]]) -> None:
        self._roots = roots
        self._past: deque[tuple[float, float, float]] = deque()

    def open(self) -> None:
        self._past.clear()

    def unknown(self, draft: Draft) -> None:
        draft.foreign_cpu_share = None

    def read(self, draft: Draft) -> None:
        try:
            times = psutil.cpu_times()
            busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0)
            # A guest's time is counted in user time already.
            busy_s -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
            own_s = tree_cpu_s(self._roots())
        except (OSError, psutil.Error) as error:
            raise Failed(f"the load of the CPU cannot be read ({error})") from error
        now_s = time.monotonic()
        self._past.append((now_s, busy_s, own_s))
        while len(self._past) > 2 and now_s - self._past[1][0] >= WINDOW_S:
            self._past.popleft()
        first_s, first_busy_s, first_own_s = self._past[0]
        if now_s - first_s < min(WINDOW_S, 2 * self.every_s) * 0.9:
            draft.foreign_cpu_share = 0.0
            return
        processors = psutil.cpu_count() or 1
        foreign_s = busy_s - first_busy_s - max(0.0, own_s - first_own_s)
        draft.foreign_cpu_share = min(1.0, max(0.0, foreign_s / (now_s - first_s) / processors))


class Programs(Sensor):
    """Which of the named programs run. Only processes that are new since the last look are read."""

    name = "programs"
    every_s = 1.0

    def __init__(self) -> None:
        self._names: dict[int, tuple[float, frozenset[str]]] = {}

    def unknown(self, draft: Draft) -> None:
        draft.programs = None

    def read(self, draft: Draft) -> None:
        owner = draft.settings.owner
        wanted = (*owner.exclusive_programs, *owner.gpu_exclusive_programs)
        if not wanted:
            draft.programs = ()
            self._names.clear()
            return
        now_s = time.monotonic()
        try:
            pids = psutil.pids()
        except (OSError, psutil.Error) as error:
            raise Failed(f"the list of processes cannot be read ({error})") from error
        names: dict[int, tuple[float, frozenset[str]]] = {}
        for pid in pids:
            known = self._names.get(pid)
            if known is not None and now_s - known[0] > RECHECK_S:
                names[pid] = known
            else:
                names[pid] = (known[0] if known else now_s, program_names(pid))
        self._names = names
        running = frozenset().union(*(one for _, one in names.values()))
        draft.programs = tuple(
            name for name in wanted if name.lower() in running or name.lower()[:COMM_CHARS] in running
        )


def program_names(pid: int) -> frozenset[str]:
    """What a person may call the program: its name, and the last part of how it was started."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            started = process.cmdline()
            names = {process.name().lower()}
    except psutil.Error:
        return frozenset()
    if started and started[0]:
        names.add(re.split(r"[/\\]", started[0])[-1].lower())
    return frozenset(name for name in names | {name.removesuffix(".exe") for name in names} if name)
