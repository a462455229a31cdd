"""Sandboxes in reserve: started before a job asks, so that it waits for a fork alone. Each is used by one job."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fallow.agent.memory import MachineMemory
from fallow.core.spares import kept_spares

if TYPE_CHECKING:
    from fallow.agent.zygote import Zygote

AFTER_S = 0.3
"""The next is begun so long after one was taken: the job that took it comes first."""

_Built = tuple[int, int]


class Spares:
    """One for the agent's own interpreter, and for the environments that jobs have asked for lately. Use from one
    event loop. `begin` starts a sandbox with an interpreter; `end` stops one."""

    def __init__(
        self,
        begin: Callable[[str], asyncio.Task[Zygote]],
        end: Callable[[asyncio.Task[Zygote]], object],
    ) -> None:
        self._begin = begin
        self._end = end
        self._tasks: dict[str, tuple[asyncio.Task[Zygote], _Built]] = {}
        self._used_s: dict[str, float] = {}
        self._memory: MachineMemory | None = None
        self._closed = False

    @property
    def pythons(self) -> list[str]:
        """Interpreters that have one now."""
        return list(self._tasks)

    def keep(self, python: str) -> None:
        """Have one for this interpreter, if it is still worth it."""
        if self._closed or python in self._tasks or (python != sys.executable and python not in self._worth()):
            return
        if built := _built(python):
            self._tasks[python] = (self._begin(python), built)

    def take(self, python: str) -> asyncio.Task[Zygote] | None:
        """The one of this interpreter, which is the caller's from now on; the next is begun soon. None: there is
        none."""
        self._used_s[python] = time.monotonic()
        asyncio.get_running_loop().call_later(AFTER_S, self.keep, python)
        task, built = self._tasks.pop(python, (None, None))
        if task is None:
            return None
        if task.done() and (task.cancelled() or task.exception() is not None or not task.result().is_alive):
            self._end(task)
            return None
        if built != _built(python):  # removed and built anew since: what it sees is no more
            self._end(task)
            return None
        return task

    def sweep(self) -> None:
        """Give up what is not worth it any more."""
        worth = {sys.executable, *self._worth()}
        for python in [python for python in self._tasks if python not in worth or not os.path.exists(python)]:
            self._end(self._tasks.pop(python)[0])

    def close(self) -> list[asyncio.Task[Zygote]]:
        """No more of them; what there is, for the caller to end."""
        self._closed = True
        tasks = [task for task, _ in self._tasks.values()]
        self._tasks.clear()
        return tasks

    def _worth(self) -> list[str]:
        if self._memory is None:
            self._memory = MachineMemory()
        self._memory.refresh()
        now = time.monotonic()
        used = {python: at for python, at in self._used_s.items() if python != sys.executable}
        worth = kept_spares(used, now, self._memory.available, self._memory.total)
        self._used_s = {python: used[python] for python in worth}
        return worth


def _built(python: str) -> _Built | None:
    """What tells an environment from another that was built at the same place later; None where there is none."""
    try:
        about = os.stat(os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg"))
    except OSError:
        return (0, 0) if os.path.exists(python) else None
    return about.st_ino, about.st_mtime_ns
