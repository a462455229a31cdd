"""The Store protocol: the truth about jobs, behind SQLite and PostgreSQL.

A store is synchronous and used from one writer thread of a coordinator (and reader threads). It reads no clock:
times come in; only sessions and leadership go by the database's clock, the one that all coordinators share.
Every commit is one transaction; it applies all of its operations or none, and checks that the committer still owns
each job it writes (`OwnershipLost`). Applying the same operations again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from fallow.core.sessions import Renewal
from fallow.model.ids import Interval, JobId, PoolId
from fallow.model.job import Blob, JobSpec
from fallow.model.node import NodeSpec
from fallow.model.states import JobState


class StoreError(Exception):
    """Base of what a store raises on purpose. The message is for people."""


class StoreFull(StoreError):
    """The disk is full. Nothing of the commit was kept; try again when there is room."""


class StoreUnavailable(StoreError):
    """The engine does not answer. Nothing is known to be kept; try again."""


class SchemaTooNew(StoreError):
    """The store was written by a newer Fallow. Says which, and what to install."""


class SchemaTooOld(StoreError):
    """The store has the schema of an older Fallow, and is not upgraded by opening it. Says what to run."""


class StoreMoved(StoreError):
    """What was in this store lies in another one now. Says where."""


class WrongPool(StoreError):
    """The store belongs to another pool."""


class OwnershipLost(StoreError):
    """Another coordinator owns the job: nothing of the commit was kept. `job_ids` says which."""

    def __init__(self, job_ids: Sequence[JobId]) -> None:
        super().__init__(f"no longer the owner of {', '.join(job_ids)}")
        self.job_ids = tuple(job_ids)


# ---------------------------------------------------------------- operations


class Op(Struct, frozen=True, tag=True):
    """One write. All but PutNode carry the job and the epoch under which the writer owns it."""


class CreateJob(Op, frozen=True):
    """Insert the job, owned by `owner` under epoch 1, state open. A job of that id that exists is left alone."""

    spec: JobSpec
    owner: str
    unix_s: float


class SetJob(Op, frozen=True):
    """State and what goes with it; None leaves a field as it is."""

    job_id: JobId
    epoch: int
    state: JobState | None = None
    reason: str | None = None
    total: int | None = None
    ended_unix_s: float | None = None
    nodes: dict[str, int] | None = None
    input_error: str | None = None
    consumed: int | None = None
    retried: int | None = None
    failed: int | None = None
    wasted_s: float | None = None


class PutInputPage(Op, frozen=True):
    """Keyed by (job, start): a repeat is ignored."""

    job_id: JobId
    epoch: int
    start: int
    stop: int
    page: Blob


class PutResultPage(Op, frozen=True):
    """A recorded result page, valid for [start, stop). Keyed by (job, start): a repeat is ignored.
    `seq` is the order of recording within the job, from 0, given by the owner."""

    job_id: JobId
    epoch: int
    seq: int
    start: int
    stop: int
    page_start: int
    page: Blob
    failed_count: int = 0
    failed: tuple[int, ...] = ()
    fault: tuple[str, str, str] | None = None
    """(kind, message, detail) of a FaultPage: then stop = start + 1 and page is empty."""
    node: str = ""


class DropInputPages(Op, frozen=True):
    """Forget the input pages that end at or before `below`."""

    job_id: JobId
    epoch: int
    below: int


class DropResultPages(Op, frozen=True):
    """Forget results that the client has: those that end at or before `below` (by index), or whose seq is below
    `below_seq` (by order of recording). The range stays done; give -1 for what does not apply."""

    job_id: JobId
    epoch: int
    below: int = -1
    below_seq: int = -1


class ReplaceResults(Op, frozen=True):
    """Retry of failed tasks: take these indices out of the recorded results (splitting pages' valid intervals)."""

    job_id: JobId
    epoch: int
    remove: tuple[Interval, ...]


class PutCheckpoint(Op, frozen=True):
    """The state that a task saved, in place of an earlier one."""

    job_id: JobId
    epoch: int
    index: int
    state: Blob


class DropCheckpoints(Op, frozen=True):
    """Forget the states of tasks [start, stop)."""

    job_id: JobId
    epoch: int
    start: int
    stop: int


class DeleteJob(Op, frozen=True):
    """Forget the job and everything of it."""

    job_id: JobId
    epoch: int


class PutNode(Op, frozen=True):
    """Remember a node, keyed by its id."""

    spec: NodeSpec
    unix_s: float
    state: str


class AppendLogs(Op, frozen=True):
    """Output lines (encoded LogLine each) to keep; the oldest beyond `keep` are dropped."""

    job_id: JobId
    epoch: int
    lines: tuple[tuple[int, bytes], ...]
    """(seq, encoded line)"""
    keep: int


# ---------------------------------------------------------------- what is read


class StoredJob(Struct, frozen=True):
    spec: JobSpec
    state: JobState
    reason: str
    owner: str
    epoch: int
    total: int
    """-1 until known"""
    created_unix_s: float
    ended_unix_s: float
    nodes: dict[str, int]
    input_error: str
    consumed: int
    """Index (ordered) below which an attached client has everything."""
    retried: int
    failed: int = 0
    wasted_s: float = 0.0
    """Run time lost because owners wanted their machines back."""


class PageIndex(Struct, frozen=True, array_like=True):
    """A row of input or result pages without its bytes."""

    seq: int
    start: int
    stop: int
    page_start: int
    digest: str
    size: int
    inline: bool
    failed_count: int = 0
    failed: tuple[int, ...] = ()
    fault: tuple[str, str, str] | None = None
    node: str = ""


class Kept(Struct, frozen=True):
    """What a coordinator hears when it renews its session."""

    epoch: int
    """See renew_session."""
    term: int | None
    """See acquire_leadership."""
    orphans: list[tuple[JobId, str]]
    """See jobs_of_dead_owners; none of its own."""
    others: list[Renewal]
    """The sessions of others that nobody has ended."""


class Store(Protocol):
    """See the module. Methods may be called from any thread, one at a time per kind of use."""

    def open(self) -> None:
        """Connect and bring the schema up to date (create it where there is none). Raises StoreError in words."""

    def close(self) -> None: ...

    def pool_id(self, fresh: PoolId, expected: PoolId | None = None) -> PoolId:
        """The pool that this store belongs to; `fresh` is recorded where it has none yet. Raises WrongPool where it
        is not the `expected` one."""

    def knows_secret(self, mark: str, is_own: bool) -> bool:
        """Whether this mark stands for the secret of the store's pool, or the store knows none. It is remembered where
        `is_own`, or none was."""

    def commit(self, ops: Sequence[Op]) -> None:
        """Apply all or nothing, in order, in one durable transaction."""

    def acquire_job(self, job_id: JobId, owner: str, force: bool = True) -> StoredJob | None:
        """Become the owner under the next epoch; None if there is no such job. Without `force` only where its owner
        is `owner` itself, has no live session, or released it; else None too, and get_job says whose it is."""

    def release_job(self, job_id: JobId, epoch: int, to: str = "", owner: str = "") -> None:
        """Give a job up under the next epoch: free for whoever acquires it, or `to` another coordinator, which then
        acquires it. Raises OwnershipLost where `epoch` is not the present one, or `owner` (if given) not its owner: two
        that were both sent a new job call it theirs under the same first epoch until one of them commits."""

    def jobs_of_dead_owners(self, limit: int) -> list[tuple[JobId, str]]:
        """Jobs that have not ended, oldest first, which acquire_job gives without force: those whose owner's session is
        over, and free ones, with that owner ('' for a free one)."""

    def unread_of_dead_owners(self, after_unix_s: float, limit: int) -> list[JobId]:
        """Jobs of such owners that ended after `after_unix_s` and whose pages are still there, newest first: somebody
        may be reading them. (Blocks for as long as it takes to look at all jobs.)"""

    # ------------------------------------------------------------ coordinators

    def renew_session(self, owner: str, ttl_s: float, info: str = "", anew: bool = False) -> int:
        """Live on: until it is ended, by end_session or because it was not renewed for `ttl_s` seconds, which others
        watch by their own clocks (core/sessions). Returns the session's epoch: it rises when the session had ended
        meanwhile, so that others may have taken this owner's jobs. `anew`: it is over, and another begins."""

    def renewals(self) -> list[Renewal]:
        """Of all sessions that nobody has ended, by owner."""

    def end_session(self, owner: str) -> None:
        """Say good-bye: its jobs are free at once, and so is its leadership."""

    def end_silent(self, renewal: Renewal) -> bool:
        """The same for another one, unless it was renewed since: whether it is over."""

    def acquire_leadership(self, owner: str, role: str = "matcher", alone: bool = False) -> int | None:
        """Lead, or lead on, for as long as the owner's session lasts. Returns the term: it rises with every new leader,
        and with a leader whose session was over. None while another one leads, unless one is `alone` on the store:
        then whoever led before is gone, and a new term begins."""

    def keep_session(self, owner: str, ttl_s: float, info: str, limit: int) -> Kept:
        """renew_session, acquire_leadership, jobs_of_dead_owners (`limit` at most) and `renewals` with one word to the
        database."""

    def get_job(self, job_id: JobId) -> StoredJob | None: ...

    def find_job(self, text: str) -> JobId | None:
        """By id, else the newest with that exact name, else by a prefix of the id (at least 6 characters of it)
        that only one job has."""

    def list_jobs(self, limit: int, active_only: bool) -> list[StoredJob]:
        """Newest first."""

    def input_pages(self, job_id: JobId) -> list[PageIndex]:
        """By start."""

    def inputs_stop(self, job_id: JobId) -> int:
        """How many inputs of the job are here: the end of its last input page; 0 where there is none."""

    def result_pages(self, job_id: JobId) -> list[PageIndex]:
        """By seq."""

    def done_intervals(self, job_id: JobId) -> tuple[Interval, ...]:
        """What was dropped by DropResultPages and is done all the same (result_pages does not show it)."""

    def checkpoints(self, job_id: JobId) -> dict[int, Blob]:
        """Saved states by task, with their inline data."""

    def read_input(self, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        """Pages by their start, with their inline data."""

    def read_results(self, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        """Result pages by their start, with their inline data."""

    def read_logs(self, job_id: JobId, after_seq: int, limit: int) -> list[tuple[int, bytes]]: ...

    def list_nodes(self) -> list[tuple[NodeSpec, float, str]]:
        """(spec, unix time of the last PutNode, state)"""

    def live_among(self, digests: Sequence[str]) -> set[str]:
        """Those of these that live_digests has."""

    def live_digests(self) -> set[str]:
        """Digests in the blob store that some job still needs (pages and tasks' states that are not inline, functions,
        modules)."""
