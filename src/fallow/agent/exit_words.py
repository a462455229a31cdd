"""How a worker ended, in words."""

from __future__ import annotations

import signal

from fallow.wire.messages import Death
from fallow.worker.orders import LOADING

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})


def exit_cause(status: int) -> str:
    """From os.waitstatus_to_exitcode."""
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"exited with code {status} (os._exit)"


def death_of(status: int, oom: bool, phase: int, index: int, detail: str) -> Death:
    """What a worker's own end means. `phase` and `index` as the shared map had them."""
    cause = exit_cause(status)
    if oom:
        return Death(
            index,
            "memory",
            f"the worker {cause}: the machine ran out of memory, and the kernel chose this worker",
            detail,
        )
    if phase == LOADING and (status >= 0 or -status in _CRASHES):
        return Death(-1, "setup", f"the worker {cause} while it loaded the function", detail)
    return Death(index, "worker_lost", f"the worker {cause}", detail)


def hung_at(last_words: list[str]) -> str:
    """From what a worker printed when it was asked where it is (faulthandler's words, most recent call first): the
    frames of the task alone, in the order that Python's tracebacks have."""
    try:
        first = next(at for at, line in enumerate(last_words) if line.startswith(("Current thread", "Stack (most")))
    except StopIteration:
        return "\n".join(last_words)
    frames = []
    for line in last_words[first + 1 :]:
        if not line.startswith("  File ") or "fallow/worker/" in line:
            break
        frames.append(line)
    return "\n".join(["The task was here (most recent call last):", *reversed(frames)]) if frames else ""
