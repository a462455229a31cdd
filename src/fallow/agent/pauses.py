"""Which slots the machine's owner has stopped, and why."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fallow.agent.slot import Slot

log = logging.getLogger("fallow.agent")


class Pauses:
    """Of all slots of a node. None for slots: all of them."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._reasons: dict[int, str] = {}

    def preempt(self, slots: Iterable[int] | None, reason: str, grace_s: float) -> None:
        """See Node.preempt."""
        for number in self._numbers(slots):
            is_news = number not in self._reasons
            self._reasons[number] = reason
            if is_news:
                self._slots[number].preempt(reason, grace_s)
        log.info("paused: %s", reason)

    def allow(self, slots: Iterable[int] | None) -> bool:
        """Says whether any of them was stopped."""
        opened = [number for number in self._numbers(slots) if self._reasons.pop(number, None) is not None]
        for number in opened:
            self._slots[number].allow()
        return bool(opened)

    def _numbers(self, slots: Iterable[int] | None) -> list[int]:
        known = range(len(self._slots))
        return list(known) if slots is None else [number for number in slots if number in known]

    @property
    def words(self) -> str:
        """Why nothing runs here now; '' where something may."""
        return next(iter(self._reasons.values())) if len(self._reasons) == len(self._slots) and self._slots else ""
