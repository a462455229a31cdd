"""When a coordinator turns to what is due by the clock: one timer for all of it, since every wake-up of a process at
rest costs more than what it does then."""

from __future__ import annotations

import asyncio


class Turns:
    """Each turn is due at one time and, where no message wakes the loop anyway, a little later (`latest`). Times are
    the loop's, in seconds. Use from the loop."""

    def __init__(self) -> None:
        self.is_over = False
        self._is_called = False
        self._due_s = float("inf")
        self._waiter: asyncio.Future[bool] | None = None

    def end(self) -> None:
        self.is_over = True
        self.hurry()

    def hurry(self) -> None:
        """The next turn is nearer than was thought, perhaps."""
        self._is_called = True
        self._wake(False)

    def ride(self) -> None:
        """The loop is awake: a turn that is due comes now."""
        if asyncio.get_running_loop().time() >= self._due_s:
            self._wake(True)

    async def wait(self, due_s: float, latest_s: float) -> bool:
        """False: somebody called before the time was over."""
        if not self._is_called:
            # (A bare timer: asyncio.timeout takes several times as long, some times a second.)
            loop = asyncio.get_running_loop()
            self._waiter, self._due_s = loop.create_future(), due_s
            timer = loop.call_at(latest_s, self._wake, True)
            try:
                if await self._waiter:
                    return True
            finally:
                self._waiter, self._due_s = None, float("inf")
                timer.cancel()
        self._is_called = False
        return False

    def _wake(self, in_time: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(in_time)
