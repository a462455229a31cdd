"""Children of a zygote: what lives, what must not, and Linux's means for that."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(sig: int) -> None:
    """Have this process get `sig` when its parent's thread ends (Linux; elsewhere nothing)."""
    _prctl(_PR_SET_PDEATHSIG, sig)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own (Linux; elsewhere nothing)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def children() -> list[int]:
    """This process's children (Linux; elsewhere none are known)."""
    if sys.platform != "linux":
        return []
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return _children_by_scan()


def _children_by_scan() -> list[int]:
    own = str(os.getpid())
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    if file.read().rpartition(")")[2].split()[1] == own:
                        found.append(int(name))
            except OSError:
                continue
    return found


def next_ended() -> int:
    """A child that has ended and is not reaped yet; 0 if there is none. Where the system cannot tell (macOS before
    Python 3.13) none is ever found, and `reap` finds them itself."""
    if not hasattr(os, "waitid"):
        return 0
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return found.si_pid if found is not None else 0


def reap(workers: Collection[int]) -> tuple[int, int]:
    """Reap one ended child: (pid, exit code as os.waitstatus_to_exitcode gives it); pid 0 if there is none. What is
    left of a worker's process group is killed first: until it is reaped, nobody else can get its number."""
    if (pid := next_ended()) in workers:
        kill_group(pid)
    try:
        pid, status = os.waitpid(pid or -1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0
    return (pid, os.waitstatus_to_exitcode(status)) if pid else (0, 0)


def kill_group(pid: int, sig: int = signal.SIGKILL) -> None:
    """A signal to a worker and all of its process group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, sig)
        except (ProcessLookupError, PermissionError):
            continue


def kill_strays(keep: Collection[int]) -> set[int]:
    """Kill adopted children that belong to no session of a worker in `keep`. Returns their pids: what they leave
    behind is adopted in turn when they are reaped."""
    killed = set()
    for pid in children():
        if pid in keep:
            continue
        try:
            if os.getsid(pid) not in keep:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return killed


def kill_all(within_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
    """Kill every child, and whoever is adopted thereby, until none is left."""
    end = clock() + within_s
    while clock() < end:
        for pid in children():
            kill_group(pid)
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(0.002)


def kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory since the machine started."""
    try:
        with open("/proc/vmstat") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
