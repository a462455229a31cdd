"""Parts of messages that the core decides about: pages, deaths, held leases."""

from __future__ import annotations

from msgspec import Struct

from fallow.model.ids import JobId, Token
from fallow.model.job import Blob


class InputPage(Struct, frozen=True, array_like=True, gc=False):
    """Encoded inputs of tasks [start, stop)."""

    start: int
    stop: int
    page: Blob


class ResultPage(Struct, frozen=True, array_like=True, gc=False):
    """Encoded results whose first item belongs to task `page_start`; only [start, stop) of it is valid.

    The page may hold more than is valid; readers slice after decoding."""

    start: int
    stop: int
    page_start: int
    page: Blob
    failed_count: int = 0
    failed: tuple[int, ...] = ()
    """Indices that failed, at most FAILED_LIST_LIMIT of them."""


class FaultPage(Struct, frozen=True, array_like=True, gc=False):
    """A result that no worker could write: task `index` failed from outside. See wire.page.Failure for `kind`."""

    index: int
    kind: str
    message: str
    detail: str = ""


FAILED_LIST_LIMIT = 256


class Death(Struct, frozen=True, array_like=True, gc=False):
    """A worker ended while it ran task `index` (-1: outside any task).

    kind: 'worker_lost' (died by itself), 'timeout' (killed for the task's time limit), 'memory' (killed for the
    memory limit, or by the kernel), 'setup' (environment or function could not be loaded: detail has the words). Or the
    task ran, and the node's disk has no room for its result: 'no_room'."""

    index: int
    kind: str
    message: str
    detail: str = ""
    count: int = 1
    """Short tasks run in blocks: which of [index, index + count) it was is not known."""


class RetryLater(Struct, frozen=True, array_like=True, gc=False):
    """Task to run again, as attempt number `attempt`, not before `delay_s` from now."""

    index: int
    attempt: int
    delay_s: float


class HeldLease(Struct, frozen=True, array_like=True, gc=False):
    """A lease that the agent holds: named in every beat, so that it lives on, and is adopted after a take-over."""

    job_id: JobId
    token: Token
    slot: int
    start: int
    stop: int
    index: int = -1
    """Task in progress; -1 while not begun."""
    elapsed_s: float = 0.0
    """How long that task has run."""


class LogLine(Struct, frozen=True, array_like=True, gc=False):
    """A line that a task printed (index -1: outside a task)."""

    seq: int
    node: str
    index: int
    stream: str
    text: str
    unix_s: float = 0.0


class SlotState(Struct, frozen=True, array_like=True, gc=False):
    slot: int
    job_id: JobId | None
    """What the slot is assigned to."""
    paused: bool = False
    """The machine's owner lets nothing run on it now."""
    tied_to: JobId | None = None
    """The job whose task has run on it for long: whoever the slot is assigned to has it when that ends."""
