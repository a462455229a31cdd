"""Gives way to everything else on the machine."""

from __future__ import annotations

import contextlib
import os


def lower_priority(pid: int, nice: int, idle_io: bool) -> None:
    """Have a process, and all that it starts from now on, run at this niceness (0 to 19) and, where the system has such
    a class, read and write only when nobody else does. A process cannot be raised again: nothing happens then."""
    if not pid or (not nice and not idle_io):
        return
    with contextlib.suppress(OSError, AttributeError):
        if os.getpriority(os.PRIO_PROCESS, pid) < nice:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
            if idle_io:
                _idle_io(pid)


def give_way(pid: int) -> None:
    """Have a process of ours (0: this one), and all that it starts from now on, run when nothing else would: of
    a busy processor niceness 19 takes 1.5 %, Linux's idle class 0.3 %."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such calls
        os.setpriority(os.PRIO_PROCESS, pid, 19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _idle_io(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error, AttributeError):
        psutil.Process(pid).ionice(psutil.IOPRIO_CLASS_IDLE)
