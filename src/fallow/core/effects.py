"""What the core asks its shell to do, in order."""

from __future__ import annotations

from msgspec import Struct

from fallow.model.ids import JobId, NodeId, SlotKey, Token
from fallow.model.parts import FaultPage, ResultPage
from fallow.model.states import JobState


class Grant(Struct, frozen=True):
    """Send a Lease to the slot."""

    slot: SlotKey
    pull_seq: int
    token: Token
    start: int
    stop: int
    budget_s: float
    held_pages: frozenset[int]
    alone: bool = False
    attempt: int = 0
    again: bool = False
    """It was sent before, and may be lost."""


class AskBack(Struct, frozen=True):
    """Send a TakeBack."""

    slot: SlotKey
    token: Token
    share: float


class Drop(Struct, frozen=True):
    """Send a Revoke of these leases to the node."""

    node: NodeId
    tokens: tuple[Token, ...]
    reason: str


class Record(Struct, frozen=True):
    """Journal a result page (already narrowed to what is new)."""

    page: ResultPage
    node: NodeId


class RecordFault(Struct, frozen=True):
    """Journal a failure that no worker could write."""

    fault: FaultPage
    node: NodeId | None


class Ended(Struct, frozen=True):
    """The job has reached a final state."""

    job_id: JobId
    state: JobState
    reason: str


class Wake(Struct, frozen=True):
    """Call dispatch again at this time (monotonic seconds)."""

    at: float


Effect = Grant | AskBack | Drop | Record | RecordFault | Ended | Wake
