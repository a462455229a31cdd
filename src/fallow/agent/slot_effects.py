"""What a slot's decisions ask of the shell around it. See slot_state."""

from __future__ import annotations

from msgspec import Struct

from fallow.core.intervals import IntervalSet
from fallow.model.ids import Interval, JobId, Token
from fallow.model.job import JobSpec
from fallow.model.parts import InputPage
from fallow.wire.messages import HandIn, Lease


class Held:
    """A lease that the slot holds, and what of it is already handed in or given back."""

    __slots__ = (
        "alone",
        "asked",
        "attempt",
        "budget_s",
        "checkpoints",
        "covered",
        "cut",
        "job_id",
        "pages",
        "revoked",
        "seq",
        "start",
        "stop",
        "token",
    )

    def __init__(self, lease: Lease) -> None:
        self.job_id: JobId = lease.job_id
        self.token: Token = (lease.token[0], lease.token[1])
        self.start = lease.start
        self.stop = lease.stop
        self.budget_s = lease.budget_s
        self.pages: tuple[InputPage, ...] = lease.pages
        self.alone = lease.alone
        self.attempt = lease.attempt
        self.checkpoints = lease.checkpoints
        self.seq = 0
        self.covered = IntervalSet()
        """Handed in, given back or put off."""
        self.cut = lease.stop
        """Everything from here on was given back while the worker ran."""
        self.asked: int | None = None
        """The worker was told to begin nothing from here on, and what that cut off is not yet given back."""
        self.revoked = False

    def __repr__(self) -> str:
        return f"lease {self.token} of {self.job_id} [{self.start}, {self.stop})"

    @property
    def may_be_cut(self) -> bool:
        """It is wanted, and is not being cut already."""
        return not self.revoked and self.asked is None

    def missing(self, start: int, stop: int) -> tuple[Interval, ...]:
        """The parts of [start, stop) that nobody has heard of yet."""
        return tuple(self.covered.gaps(start, stop))


class StandingPull(Struct):
    """The slot's newest Pull, until it is answered."""

    job_id: JobId
    seq: int
    idle: bool
    sent_s: float


class Effect(Struct, frozen=True):
    """Base of what is to be done."""


class Prepare(Effect, frozen=True):
    """Make the environment and the function of the job ready; then say `prepared` or `refused`."""

    spec: JobSpec


class Begin(Effect, frozen=True):
    """Run the lease on this lane's worker."""

    lane: int
    held: Held


class Deliver(Effect, frozen=True):
    """Hand in, with the pull in the same message where there is one. `files`: results that lie in files."""

    hand_in: HandIn
    files: dict[str, str] = {}
    pull: StandingPull | None = None


class Discard(Effect, frozen=True):
    """These result files are of no use to anybody."""

    files: dict[str, str]


class SendPull(Effect, frozen=True):
    pull: StandingPull


class SendUnpull(Effect, frozen=True):
    job_id: JobId
    seq: int


class Cut(Effect, frozen=True):
    """Find out how far the lane is, then ask `plan_cut`, limit the worker, and say `cut`."""

    lane: int
    held: Held
    share: float


class Abort(Effect, frozen=True):
    """End the lane's order quickly: limit it now, kill the worker if that does not end it within KILL_AFTER_S."""

    lane: int
    held: Held
    reason: str


class Preempt(Effect, frozen=True):
    """The owner of the machine wants it back: give the lane's task notice, then end its worker; say `preempted` if that
    cut a task short."""

    lane: int
    held: Held


class Retire(Effect, frozen=True):
    """This extra lane is not needed any more: its worker goes."""

    lane: int


class Refuse(Effect, frozen=True):
    """Tell the owner that this node cannot run the job."""

    job_id: JobId
    kind: str
    message: str
    fatal: bool


class Later(Effect, frozen=True):
    """Call `tick` after this time."""

    delay_s: float
