"""Near the end of a job: taking back what has not begun, and running tasks in progress a second time."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping
from heapq import heappop, heappush
from math import inf

from fallow.core.effects import AskBack
from fallow.core.lease import KnownSlot, LiveLease
from fallow.core.sizing import Rate
from fallow.model.ids import Token

ASK_AGAIN_S = 1.0
"""A TakeBack that was not answered for so long is asked again."""
WORTH_S = 0.003
"""Less work than this is done before it could be moved."""
KEPT_PER_SLOT = 2
"""So many tasks for each slot wait for slots that fall idle (`python -m bench.endgame` shows what it does)."""
KEPT_TASK_S = 0.02
"""Shorter tasks are given ahead to the end: the way to an idle slot would take as long as they do."""
DOUBLE_FACTOR = 3.0
DOUBLE_AFTER_S = 1.0
FREQUENT_BEATS_S = 2.5
"""Where nodes beat more seldom than that, a task is slow only if a heartbeat says so: else almost every task would seem
to run from one to the next, and be run twice."""
LOOK_SHARE = 0.05
"""Between two looks at every lease for one to double passes at least this share of how long a task has to run before
it is doubled."""


def keeps_the_rest(remaining: int | None, slots: int, rate: Rate) -> bool:
    """Whether the last tasks wait for slots that fall idle, and no slot gets one ahead: each would go to whoever is
    free first, and what was given ahead would only be taken back. `remaining`: tasks that nobody has leased; None:
    more may come."""
    return remaining is not None and remaining <= KEPT_PER_SLOT * slots and 0 < rate.per_s <= 1 / KEPT_TASK_S


class TakeBacks:
    """Leases by how much of them has not begun, from the first look near the end of a job on. A lease only loses
    work, so that an entry that says too much sinks when it is met, and no idle slot costs a look at every lease."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, Token]] = []
        self._asked: deque[tuple[float, Token]] = deque()
        """When which was asked: its answer may be lost."""
        self._is_known = False

    def is_quiet(self, now: float) -> bool:
        """Whether `next` is sure to find nothing."""
        return self._is_known and not self._heap and (not self._asked or now < self._asked[0][0] + ASK_AGAIN_S)

    def added(self, lease: LiveLease) -> None:
        """There is a new lease, or one that may be asked once more."""
        if self._is_known:
            heappush(self._heap, (-inf, lease.token))

    def next(
        self,
        leases: Mapping[Token, LiveLease],
        now: float,
    ) -> AskBack | None:
        """The lease with most work that is not begun, as far as can be told; marks it as being asked. None: nothing
        is worth it."""
        if not self._is_known or len(self._heap) > 4 * len(leases) + 100:
            self._heap = [(-inf, token) for token in leases]
            self._asked.clear()
            self._is_known = True
        while self._asked and now >= self._asked[0][0] + ASK_AGAIN_S:
            heappush(self._heap, (-inf, self._asked.popleft()[1]))
        while self._heap:
            said, token = heappop(self._heap)
            lease = leases.get(token)
            if lease is None or lease.doubled or lease.alone:
                continue
            if lease.taking_back_at is not None and now - lease.taking_back_at < ASK_AGAIN_S:
                self._asked.append((now, token))
                continue
            place = lease.place
            begun = place.tokens[0] == token
            waiting = len(lease.pending) - (1 if begun else 0)
            rate = place.rate.per_s if place.rate is not None else 0.0
            work_s = waiting / rate if rate > 0 else 1.0 * waiting
            if waiting <= 0 or work_s <= WORTH_S:
                continue
            if begun and rate > 0 and lease.works_since is not None:
                # Most of it may be done by now; a lease that waits behind it comes back whole, and at once.
                work_s = max(0.0, work_s - (now - lease.works_since))
            if self._heap and -work_s > self._heap[0][0] and -work_s != said:
                heappush(self._heap, (-work_s, token))
                continue
            lease.taking_back_at = now
            self._asked.append((now, token))
            return AskBack(lease.slot, token, 0.5 if begun else 1.0)
        return None


def double_after_s(rate: Rate) -> float:
    """How long a task runs before it may be doubled."""
    return max(DOUBLE_AFTER_S, DOUBLE_FACTOR / rate.per_s) if rate.per_s > 0 else DOUBLE_AFTER_S


def find_double(
    leases: Iterable[LiveLease],
    rate: Rate,
    doubled: Container[int],
    slot: KnownSlot,
    timeout_s: float,
    now: float,
) -> int | float | None:
    """A task in progress that has run for long, on another node where there is one: its index (int). A float: the
    time at which one will have run long enough. None: there is none to double."""
    if rate.per_s <= 0:
        return None
    threshold = double_after_s(rate)
    if 0 < timeout_s < 2 * threshold:
        return None  # a task that runs for so long will meet its time limit soon, and so would its double
    soonest: float | None = None
    best: tuple[bool, float, int] | None = None
    for lease in leases:
        if lease.doubled or lease.place is slot or lease.index < 0 or lease.index in doubled:
            continue
        if lease.index not in lease.pending or lease.place.tokens[0] != lease.token:
            continue
        due = lease.index_since + threshold
        if due > lease.index_holds_until:
            continue  # it may well be done by then; the next heartbeat says so, or not
        if due > now:
            soonest = due if soonest is None else min(soonest, due)
            continue
        candidate = (lease.node != slot.node, now - lease.index_since, lease.index)
        best = candidate if best is None else max(best, candidate)
    if best is not None:
        return best[2]
    return soonest
