"""Which owners a beat names leases to. One who hears of a node by its hand-ins anyway is not woken for more: all that
ran when the last beat went is over, so that nothing that it believes of the node is out of date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from fallow.model.ids import JobId, Token
from fallow.model.job import JobKind

if TYPE_CHECKING:
    from fallow.agent.slot_state import SlotMachine
    from fallow.model.parts import HeldLease

UNANSWERED_S = 0.3
"""A pull that stands for so long may have been answered by a lease that was lost: its owner is told what has come."""


class HasMachine(Protocol):
    machine: SlotMachine


class Named:
    """Of one node. `now` reads a monotonic clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._begun: dict[JobId, frozenset[Token]] = {}
        """Leases that had begun when the last beat went."""
        self._interval_s = 0.0

    def due(
        self,
        held: Mapping[JobId, tuple[HeldLease, ...]],
        slots: Iterable[HasMachine],
        interval_s: float,
        anew: bool,
    ) -> set[JobId]:
        """The jobs whose owners are to be told with this beat. `interval_s`: until the next one at most; `anew`: all
        of them, since the connection is a new one."""
        before, self._begun = (
            self._begun,
            {job_id: frozenset(one.token for one in of if one.index >= 0) for job_id, of in held.items()},
        )
        is_another, self._interval_s = interval_s != self._interval_s, interval_s
        calm: dict[JobId, bool] = {}
        now = self._now()
        for slot in slots:
            if (job_id := slot.machine.job_id) is not None:
                calm[job_id] = calm.get(job_id, True) and not _may_wait(slot.machine, now)
        return {
            job_id
            for job_id, leases in held.items()
            if anew
            or is_another
            or not calm.get(job_id)
            or not self._begun[job_id]
            or not (last := before.get(job_id))
            or any(one.token in last for one in leases)
        }


def _may_wait(machine: SlotMachine, now: float) -> bool:
    """Whether somebody waits for a word: a single call, or a slot for a lease."""
    is_calls = machine.spec is not None and machine.spec.kind is JobKind.CALLS
    return is_calls or (machine.pull is not None and now - machine.pull.sent_s >= UNANSWERED_S)
