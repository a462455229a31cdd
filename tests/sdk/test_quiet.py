"""When a client asks after a call that nobody speaks of: soon, again soon where that was of no use, and then seldom."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

from fallow.sdk.quiet import MORE_SELDOM, QUIET_S, Quiet

ANSWER_S = 0.01


class Clock:
    """The loop's clock and timers, in virtual time, and the thread that they run on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = self
        self._timers: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = count()

    def time(self) -> float:
        return self.now

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        self.call_later(0.0, function, *arguments)

    def call_later(self, wait_s: float, function: Callable[..., object], *arguments: Any) -> None:
        heapq.heappush(self._timers, (self.now + wait_s, next(self._number), function, arguments))

    def run(self, until_s: float) -> None:
        while self._timers and self._timers[0][0] <= until_s:
            self.now, _, function, arguments = heapq.heappop(self._timers)
            function(*arguments)
        self.now = until_s


class Caller:
    """Waits for one call; whoever it asks answers a moment later that the call is under way."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.heard = 0.0
        self.waits = True
        self.asked: list[float] = []
        self.quiet = Quiet(self.clock, lambda: self.heard, lambda: self.waits, self._ask)  # type: ignore[arg-type]

    def hear(self) -> None:
        self.heard = self.clock.now

    def _ask(self) -> None:
        self.asked.append(self.clock.now)
        self.clock.call_later(ANSWER_S, self.hear)


def test_an_answer_that_does_not_help_does_not_put_the_next_question_off() -> None:
    caller = Caller()
    caller.quiet.arm()
    caller.clock.run(10.0)
    waits = [b - a for a, b in zip([0.0, *caller.asked], caller.asked, strict=False)]
    for number, wait_s in enumerate(waits):
        assert wait_s <= QUIET_S * MORE_SELDOM**number + 2 * ANSWER_S
    assert len(waits) == 4
    assert not caller.quiet.is_armed, "from then on the client's tick asks"


def test_who_is_answered_asks_nothing() -> None:
    caller = Caller()
    caller.quiet.arm()
    for tenth in range(1, 50):
        caller.clock.run(tenth / 10)
        caller.hear()
    caller.waits = False
    caller.clock.run(6.0)
    assert caller.asked == []
    assert not caller.quiet.is_armed


def test_after_a_silence_that_ended_the_next_one_is_noticed_as_soon_as_the_first() -> None:
    caller = Caller()
    caller.quiet.arm()
    caller.clock.run(1.2)
    assert len(caller.asked) == 2
    for tenth in range(13, 40):
        caller.clock.run(tenth / 10)
        caller.hear()
    caller.clock.run(5.0)
    assert caller.asked[2] - 3.9 <= QUIET_S + ANSWER_S
