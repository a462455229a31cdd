"""How a worker ended, in words."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from fallow.wire.messages import Death
from fallow.worker.orders import LOADING

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
_STACK_HEADS = ("Current thread 0x", "Stack (most recent call first)")


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


def task_stack(last_words: Sequence[str]) -> str:
    """What a worker printed last. Where Python's fault handler showed a stack (most recent call first), only the
    frames of the task itself, in the order that tracebacks have."""
    heads = [at for at, line in enumerate(last_words) if line.startswith(_STACK_HEADS)]
    if not heads:
        return "\n".join(last_words)
    before = [line for line in last_words[: heads[0]] if line and not line.startswith("Thread 0x")]
    if any(line.startswith("  File ") for line in before):  # stacks of other threads
        before = before[: next(at for at, line in enumerate(before) if line.startswith("  File "))]
    frames = []
    for line in last_words[heads[0] + 1 :]:
        if not line.startswith("  File ") or "fallow/worker/" in line:
            break
        frames.append(line)
    if frames:
        before += ["The task was here (most recent call last):", *reversed(frames)]
    return "\n".join(before)
