"""Near the end of a job: taking back what has not begun, and running tasks in progress a second time."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from fallow.core.effects import AskBack
from fallow.core.lease import LiveLease
from fallow.core.sizing import Rate
from fallow.model.ids import SlotKey, Token

ASK_AGAIN_S = 1.0
"""A TakeBack that was not answered for so long is asked again."""
WORTH_S = 0.003
"""Less work than this is done before it could be moved."""
DOUBLE_FACTOR = 3.0
DOUBLE_AFTER_S = 1.0


def find_take_back(
    leases: Mapping[Token, LiveLease], by_slot: Mapping[SlotKey, list[Token]], rates: Mapping[SlotKey, Rate], now: float
) -> AskBack | None:
    """The lease with most work not begun; marks it as being asked. None: nothing is worth it."""
    best: LiveLease | None = None
    best_s = WORTH_S
    best_begun = False
    for slot, tokens in by_slot.items():
        rate = rates[slot].per_s if slot in rates else 0.0
        for at, token in enumerate(tokens):
            lease = leases[token]
            if lease.doubled or lease.alone:
                continue
            if lease.taking_back_at is not None and now - lease.taking_back_at < ASK_AGAIN_S:
                continue
            begun = at == 0
            waiting = len(lease.pending) - (1 if begun else 0)
            if waiting <= 0:
                continue
            work_s = waiting / rate if rate > 0 else 1.0 * waiting
            if work_s > best_s:
                best, best_s, best_begun = lease, work_s, begun
    if best is None:
        return None
    best.taking_back_at = now
    return AskBack(best.slot, best.token, 0.5 if best_begun else 1.0)


def find_double(
    leases: Iterable[LiveLease],
    by_slot: Mapping[SlotKey, list[Token]],
    rate: Rate,
    doubled: Container[int],
    slot: SlotKey,
    timeout_s: float,
    now: float,
) -> int | float | None:
    """A task in progress that has run for long, on another node where there is one: its index (int). A float: the
    time at which one will have run long enough. None: there is none to double."""
    if rate.per_s <= 0:
        return None
    threshold = max(DOUBLE_AFTER_S, DOUBLE_FACTOR / rate.per_s)
    if 0 < timeout_s < 2 * threshold:
        return None  # a task that runs for so long will meet its time limit soon, and so would its double
    soonest: float | None = None
    best: tuple[bool, float, int] | None = None
    for lease in leases:
        if lease.doubled or lease.slot == slot or lease.index < 0 or lease.index in doubled:
            continue
        if lease.index not in lease.pending or by_slot.get(lease.slot, [None])[0] != lease.token:
            continue
        due = lease.index_since + threshold
        if due > now:
            soonest = due if soonest is None else min(soonest, due)
            continue
        candidate = (lease.node != slot[0], now - lease.index_since, lease.index)
        best = candidate if best is None else max(best, candidate)
    if best is not None:
        return best[2]
    return soonest
