"""How long a lease should be: guided self-scheduling (Polychronopoulos and Kuck, 1987) with a measured rate."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

GROWTH = 8
"""A slot's next range is at most this many times its last."""

QUICK_S = 0.001
QUICK_GROWTH = 64
"""The same after one that ran for no longer than QUICK_S: round trips took longer, and what follows a misjudgement is
taken back, or given back after the budget."""

MAP_TARGET_S = 1.5
"""Work aimed at in one lease of a map; grows with the load of the coordinator (see target_s)."""

CALLS_TARGET_S = 0.05
"""Single calls are waited for: their leases stay short."""

LEAST_BUDGET_S = 2.0

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, fill the unit interval evenly whatever their number (Knuth, TAOCP 6.4)."""

FLOOR_S = 0.005
"""Shorter leases than this cost more in messages than the balance they bring."""


@dataclass(slots=True)
class Rate:
    """Exponentially forgetting mean of tasks per second; recent leases weigh most."""

    tasks: float = 0.0
    seconds: float = 0.0

    def observe(self, tasks: int, seconds: float) -> None:
        if tasks <= 0:
            return
        keep = 0.5 if self.seconds > 0.05 else 0.1
        self.tasks = self.tasks * keep + tasks
        self.seconds = self.seconds * keep + max(seconds, 1e-7 * tasks)

    @property
    def per_s(self) -> float:
        """Tasks per second; 0 while unknown."""
        return self.tasks / self.seconds if self.seconds > 0 else 0.0


def target_s(base_s: float, slots: int, ordinal: int = 0, leases_per_s_bound: float = 400.0) -> float:
    """Seconds of work to aim at, so that `slots` slots end at most about `leases_per_s_bound` leases a second.

    Where that makes leases longer, their lengths differ from one `ordinal` to the next by the golden ratio, from
    three to five quarters of it: slots that began together do not hand in together for ever."""
    crowded_s = slots / leases_per_s_bound
    if crowded_s <= base_s:
        return base_s
    return crowded_s * (0.75 + 0.5 * (ordinal * GOLDEN % 1.0))


def budget_s(aimed_s: float) -> float:
    """Seconds after which a lease that was to take `aimed_s` hands in what is done and gives the rest back."""
    return max(LEAST_BUDGET_S, aimed_s * 4 / 3)


def lease_size(
    *, remaining: int, slots: int, last_size: int, rate_per_s: float, target_s: float, size_cap: int = 0
) -> int:
    """Number of tasks for the next lease, at least 1.

    remaining: tasks of the job that nobody has leased yet; slots: how many work on it; last_size: the slot's last
    lease (0: none); rate_per_s: the slot's tasks per second (0: unknown); size_cap: bound after a death (0: none).
    """
    if rate_per_s <= 0 or last_size <= 0:
        return 1
    growth = QUICK_GROWTH if last_size <= QUICK_S * rate_per_s else GROWTH
    aimed = min(int(rate_per_s * target_s), last_size * growth)
    share = ceil(remaining / (2 * max(1, slots)))
    floor = int(rate_per_s * FLOOR_S)
    size = min(aimed, max(share, min(floor, aimed)))
    if size_cap:
        size = min(size, size_cap)
    return max(1, size)
