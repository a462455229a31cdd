"""Slots that wait for the calls of one function: a call that no other waits before goes to one of them at once.

The owner says which (CallSlot) and hears of every such call at the same moment: it stays the one that knows what runs
where. But the call does not wait for it, nor for the way there.
"""

from __future__ import annotations

from fallow.model.ids import SlotKey, call_token
from fallow.wire import subjects
from fallow.wire.messages import AppendCalls, CallSlot, Lease, Msg

ANY_PULL = 1 << 60
"""Answers whatever pull of the slot stands."""
BUDGET_S = 1.0
"""Of no meaning for a single task, which is never cut."""


class CallSlots:
    """Which slots wait, and which of them have a call. Used under the lock of `Calls`, but for `answered`, of which one
    thread at a time makes use."""

    def __init__(self) -> None:
        self._idle: list[SlotKey] = []
        self._open: set[SlotKey] = set()
        self._busy: dict[int, SlotKey] = {}

    def told(self, message: CallSlot) -> None:
        slot = (message.node_id, message.slot)
        if message.is_open and slot not in self._open:
            self._open.add(slot)
            self._idle.insert(0, slot)
        elif not message.is_open:
            self._forget(slot)

    def _forget(self, slot: SlotKey) -> None:
        self._open.discard(slot)
        if slot in self._idle:
            self._idle.remove(slot)

    def clear(self) -> None:
        """There is a new owner: it will say what it knows of."""
        self._open.clear()
        self._idle.clear()
        self._busy.clear()

    def take(self, index: int, waiting_count: int) -> SlotKey | None:
        """A slot for call `index`, the one that answered last; None where none is idle, or a call that waits
        (`waiting_count` of them, this one not counted) is not at one of these slots and has the right of way."""
        if not self._idle or waiting_count != len(self._busy):
            return None
        slot = self._busy[index] = self._idle.pop()
        return slot

    def answered(self, index: int) -> None:
        slot = self._busy.pop(index, None)
        if slot is not None and slot in self._open:
            self._idle.append(slot)


def with_lease(append: AppendCalls, epoch: int) -> list[tuple[str, Msg]]:
    """What is to be published for one call: to the owner, and, where `sent_to` names a slot, to that as well, as the
    owner would have given it."""
    publications: list[tuple[str, Msg]] = [(subjects.job(append.job_id), append)]
    if append.sent_to is not None:
        (page,), (node_id, slot) = append.pages, append.sent_to
        token = call_token(epoch, page.start)
        lease = Lease(append.job_id, epoch, token, slot, ANY_PULL, page.start, page.stop, BUDGET_S, append.pages)
        publications.append((subjects.calls(node_id), lease))
    return publications
