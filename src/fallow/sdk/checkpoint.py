"""Long tasks keep their state, and go on elsewhere when the machine's owner comes back.

    @app.function()
    def train(seed):
        step, model = fallow.checkpoint.load(default=(0, None)) ...
        for step in range(step, 1_000_000):
            ...
            fallow.checkpoint.save((step + 1, model))

`save` may be called in every iteration: it saves at most every `every_s` seconds, and at once when the machine is
wanted back. What is saved belongs to the task: whoever runs it next, on whatever node, loads it; it is dropped when
the task is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fallow.model.errors import FallowError

if TYPE_CHECKING:
    from fallow.worker.state import TaskState

EVERY_S = 30.0


def _current(what: str) -> TaskState:
    from fallow.worker import state

    found = state.current()
    if found is None:
        raise FallowError(
            f"fallow.checkpoint.{what} works inside a task only (not in the script that submits it, nor in a process "
            "that a task has started)."
        )
    return found


def load(default: Any = None) -> Any:
    """What an earlier run of this task saved last; `default` where it saved nothing, and outside a task. Raises
    OSError where it cannot be fetched."""
    from fallow.worker import state

    found = state.current()
    if found is None:
        return default
    there, value = found.load()
    return value if there else default


def save(value: Any, *, every_s: float = EVERY_S, force: bool = False) -> bool:
    """Keep `value` as the state of the running task, by pickling it; the last one counts. Says whether it was saved:
    False where the last time was less than `every_s` seconds ago (`force`: whenever it was), or where the pool cannot
    be reached now. When the machine is wanted back the state is saved at once and the call does not return: the task
    continues from it elsewhere. Raises FallowError outside a task, and for a state above 1 GiB."""
    return _current("save").save(value, 0.0 if force else every_s)


def on_preempt(hook: Callable[[], object]) -> AbstractContextManager[None]:
    """`with on_preempt(hook): ...`: while the block runs, `hook()` is called when the machine is wanted back. It has
    about a second to call `save`; then the task is ended. It runs on the task's own thread, between two steps of
    Python, and not while the task is inside a long call into C. Raises FallowError outside a task."""
    return _current("on_preempt").hook(hook)


def preempted() -> float:
    """Seconds that are left until this task is ended for the machine's owner; 0.0 while nobody wants that, and outside
    a task. (The least that it says after a notice is a hair above 0, so `if fallow.preempted():` asks just that.)"""
    from fallow.worker import state

    found = state.current()
    left_s = found.left_s() if found is not None else None
    return 0.0 if left_s is None else max(left_s, 1e-9)
