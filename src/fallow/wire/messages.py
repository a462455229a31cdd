"""Every message between client, coordinator and agent: msgspec structs in MessagePack, tagged by name.

All of them may be lost, repeated or reordered. Whoever needs an effect sends again until it is acknowledged;
whoever receives treats a repeat as done. Replies and orders carry the epoch of the job's owner: receivers drop
whatever is below the highest that they have seen for that job.

Requests (answered on NATS' reply subject) end in a comment that names their replies.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fallow.model.ids import ClientId, Digest, Interval, JobId, NodeId, Token
from fallow.model.job import Blob, JobInfo, JobSpec
from fallow.model.node import NodeInfo, NodeSpec
from fallow.model.parts import FAILED_LIST_LIMIT as FAILED_LIST_LIMIT
from fallow.model.parts import Death as Death
from fallow.model.parts import FaultPage as FaultPage
from fallow.model.parts import HeldLease as HeldLease
from fallow.model.parts import InputPage as InputPage
from fallow.model.parts import LogLine as LogLine
from fallow.model.parts import ResultPage as ResultPage
from fallow.model.parts import RetryLater as RetryLater
from fallow.model.parts import SlotState as SlotState
from fallow.wire.message import Msg as Msg
from fallow.wire.peer_messages import Echo as Echo
from fallow.wire.peer_messages import Handover as Handover
from fallow.wire.peer_messages import JobReport as JobReport
from fallow.wire.peer_messages import OwnerReport as OwnerReport
from fallow.wire.peer_messages import Place as Place
from fallow.wire.peer_messages import PoolState as PoolState
from fallow.wire.peer_messages import Verdict as Verdict

# ---------------------------------------------------------------- client -> any coordinator (subject POOL)


class GetPool(Msg, frozen=True):
    """-> PoolInfo"""


class SubmitJob(Msg, frozen=True):
    """Idempotent by spec.job_id. May carry the first pages and the end. -> Submitted | Refused"""

    spec: JobSpec
    pages: tuple[InputPage, ...] = ()
    total: int = -1


class ListJobs(Msg, frozen=True):
    """Newest first. -> Jobs"""

    limit: int = 100
    active_only: bool = False


class ListNodes(Msg, frozen=True):
    """-> Nodes"""


class FindJob(Msg, frozen=True):
    """By id or unique prefix of id or exact name (newest wins). -> JobStatus | Refused"""

    text: str


class SignBlobs(Msg, frozen=True):
    """URLs to get or put blobs, good for some minutes. -> SignedBlobs | Refused"""

    method: str
    """'GET' or 'PUT'; 'HEAD' only where the URLs are those of an S3 service"""
    blobs: tuple[tuple[Digest, int], ...]
    """(digest, size)"""


class NodeControl(Msg, frozen=True):
    """Operator's order for a node: 'drain' or 'resume'. -> Done | Refused"""

    node_id: NodeId
    order: str


class ListCoordinators(Msg, frozen=True):
    """-> Coordinators"""


class DrainCoordinator(Msg, frozen=True):
    """Operator's order: this coordinator hands its jobs over and ends. By name or owner id; passed on to it on
    OWNERS. -> Done | Refused"""

    name: str


class NodeAnew(Msg, frozen=True):
    """Published on OWNERS by the leader: the node's agent started anew as this session. What its owners believe an
    earlier one to hold is lost, also where the new one has nothing to do with the job."""

    node_id: NodeId
    name: str
    session: str


# ---------------------------------------------------------------- client -> owner (subject job(id))


class AppendInputs(Msg, frozen=True):
    """Pages must follow each other; repeats are fine. Acknowledged once durable. total >= 0 also ends the inputs.
    -> Appended | Refused"""

    job_id: JobId
    pages: tuple[InputPage, ...]
    total: int = -1
    input_error: str = ""
    """With total: the caller's iterator raised; what was submitted still runs."""


class FetchResults(Msg, frozen=True):
    """Results from `cursor` on, in index order; parks at the owner up to wait_s until there is one.
    ordered=False: results in order of recording, `cursor` is then the sequence number to go on from.
    `consumed` (attached jobs): everything below it, by the same order, may be dropped. -> Results | Refused"""

    job_id: JobId
    cursor: int
    ordered: bool = True
    consumed: int = -1
    max_bytes: int = 1 << 20
    wait_s: float = 10.0
    hint_stop: int = -1
    """Ordered only: no result at or after this index is wanted."""


class GetJob(Msg, frozen=True):
    """-> JobStatus | Refused"""

    job_id: JobId


class CancelJob(Msg, frozen=True):
    """-> Done | Refused. `settled`: a client of single calls has every answer and ends the job, a success."""

    job_id: JobId
    reason: str
    settled: bool = False


class RetryFailed(Msg, frozen=True):
    """Run again what failed, in the same job. -> JobStatus | Refused"""

    job_id: JobId


class Ping(Msg, frozen=True):
    """Keeps an attached job alive. No reply."""

    job_id: JobId
    client_id: ClientId


class GetLogs(Msg, frozen=True):
    """Kept output lines from `after_seq` on (the coordinator keeps a bounded tail per job). -> LogLines | Refused"""

    job_id: JobId
    after_seq: int = 0
    limit: int = 1000


class AppendCalls(Msg, frozen=True):
    """Inputs of single calls for a standing job. Not acknowledged: the answers are (CallResults). No reply."""

    job_id: JobId
    client_id: ClientId
    pages: tuple[InputPage, ...]
    received: tuple[Interval, ...] = ()
    """Answers that the client has: the owner forgets them."""
    sent_to: tuple[NodeId, int] | None = None
    """(node, slot) of a slot of CallSlot that was sent the only call in `pages` as well, under its call_token."""


class SyncCalls(Msg, frozen=True):
    """What the client still waits for; sent every few seconds while it waits, and answered with CallsUnknown.
    Answers that were lost are pushed again. No reply."""

    job_id: JobId
    client_id: ClientId
    waiting: tuple[Interval, ...]
    received: tuple[Interval, ...] = ()


class CancelCalls(Msg, frozen=True):
    """Calls that nobody wants any more. Those not begun never run. No reply."""

    job_id: JobId
    indices: tuple[Interval, ...]


# ---------------------------------------------------------------- coordinator -> client


class PoolInfo(Msg, frozen=True):
    pool_id: str
    name: str
    version: str
    python: str
    blob_dir: str = ""
    """Folder of the blob store where it is local to the coordinator; a client that can read
    blob_dir/.fallow-<blob_nonce> is on the same machine and reads and writes there itself."""
    blob_nonce: str = ""
    embedded: bool = False
    slots: int = 0
    unix_s: float = 0.0
    strangers: bool = False
    """Some of its nodes are lent by strangers: they run nothing without a sandbox."""
    blobs: str = ""


class Submitted(Msg, frozen=True):
    job_id: JobId
    epoch: int
    cursor: int


class Refused(Msg, frozen=True):
    """kind: 'invalid', 'not_found', 'overloaded', 'store_full', 'too_large', 'embedded', 'not_owner', 'ended',
    'python', 'limit'. `message` is for people: what was wrong and what to do."""

    kind: str
    message: str
    epoch: int = 0
    retry_after_s: float = 0.0


class Done(Msg, frozen=True):
    epoch: int = 0


class Appended(Msg, frozen=True):
    """All inputs below `cursor` are durable. The client may have at most `window` inputs, and as many bytes as
    `window_bytes`, beyond what it has consumed."""

    epoch: int
    cursor: int
    window_bytes: int


class Results(Msg, frozen=True):
    """Pages in the order asked for. `next_cursor` is where to go on. `total` is -1 until known.
    state is the job's; once it is final and next_cursor has passed the last result, there is no more."""

    epoch: int
    pages: tuple[ResultPage, ...]
    faults: tuple[FaultPage, ...]
    next_cursor: int
    total: int
    state: str
    reason: str
    info: JobInfo | None = None
    exhausted: bool = False
    """No result will ever follow next_cursor."""
    reason_kind: str = ""
    """See JobInfo.reason_kind."""


class JobStatus(Msg, frozen=True):
    epoch: int
    info: JobInfo


class Jobs(Msg, frozen=True):
    jobs: tuple[JobInfo, ...]


class Nodes(Msg, frozen=True):
    nodes: tuple[NodeInfo, ...]


class CoordinatorInfo(Struct, frozen=True, array_like=True, gc=False):
    """One coordinator, as one of them sees it."""

    owner: str
    name: str
    jobs: int
    """That have not ended."""
    leads: bool
    seen_s: float
    """Seconds since it was heard of."""


class Coordinators(Msg, frozen=True):
    coordinators: tuple[CoordinatorInfo, ...]


class SignedBlobs(Msg, frozen=True):
    urls: tuple[str, ...]


class LogLines(Msg, frozen=True):
    lines: tuple[LogLine, ...]


class CallResults(Msg, frozen=True):
    """Pushed to the client's subject; the client names what it has in its next AppendCalls or SyncCalls."""

    job_id: JobId
    epoch: int
    pages: tuple[ResultPage, ...]
    faults: tuple[FaultPage, ...] = ()
    ended: str = ""
    """Set when the standing job ended: the reason."""


class CallsUnknown(Msg, frozen=True):
    """Calls that the owner does not have: send them again (AppendCalls)."""

    job_id: JobId
    epoch: int
    unknown: tuple[Interval, ...]
    started: tuple[Interval, ...] = ()
    """Calls that are with a worker now."""


class CallSlot(Msg, frozen=True):
    """To the client of a standing job: this slot waits for its calls. While no other is out, the client sends it one at
    a time as a Lease (subjects.calls), under the call's own token (model.ids.call_token), and the same to the owner."""

    job_id: JobId
    epoch: int
    node_id: NodeId
    slot: int
    is_open: bool
    """False: it does so no longer. A call that it is sent all the same comes back to the owner."""


class OwnerHere(Msg, frozen=True):
    """To a job's client, from a new owner, or one that was cut off: what was asked meanwhile is to be asked again."""

    job_id: JobId
    epoch: int


# ---------------------------------------------------------------- agent -> the leader (subject BEAT)


BEAT_INTERVAL_S = 1.0
NODE_LOST_AFTER_S = 6.0


class Beat(Msg, frozen=True):
    """Every BEAT_INTERVAL_S, or as seldom as the leader's last BeatAck asked for; at rest every REST_INTERVAL_S
    (core.presence) at least. `spec` in the first of a session, and when asked for. Owners get Held."""

    node_id: NodeId
    session: str
    seq: int
    slots: tuple[SlotState, ...]
    busy: int
    """Slots that run something."""
    load: float = 0.0
    memory_used_bytes: int = 0
    draining: bool = False
    spec: NodeSpec | None = None
    interval_s: float = BEAT_INTERVAL_S
    """The next comes within so long; core.presence says how long a silence means that the node is lost."""
    paused: str = ""
    """Why the owner of the machine lets nothing run now, on any slot; '': something may run."""
    withheld: tuple[int, ...] = ()
    """Devices, by their place in `spec.devices`, that the owner uses now: they are given to nobody."""


class Held(Msg, frozen=True):
    """To the owner of each job that the node works for, with every beat: the leases of that job that it holds.
    gone: the agent ends, and whatever it held is to be leased elsewhere at once."""

    job_id: JobId
    node_id: NodeId
    name: str
    session: str
    leases: tuple[HeldLease, ...]
    gone: bool = False
    interval_s: float = BEAT_INTERVAL_S
    """As in Beat."""
    anew: bool = False
    """This node's connection, or the owner's, is a new one: leases that are not named were lost with the old one."""


class Bye(Msg, frozen=True):
    """The agent ends; whatever it held is to be leased elsewhere at once."""

    node_id: NodeId
    session: str


# ---------------------------------------------------------------- agent -> owner (subject job(id))


class Pull(Msg, frozen=True):
    """The slot wants a lease of this job. Stands until it is answered by Lease or replaced by the slot's next
    Pull (highest `seq` counts). `idle` says that the slot has nothing else to run; else it asks ahead.
    `pages`: starts of input pages of the job that the agent still holds."""

    job_id: JobId
    node_id: NodeId
    slot: int
    seq: int
    idle: bool
    pages: tuple[int, ...] = ()


class Unpull(Msg, frozen=True):
    """The slot takes its Pull back (it was assigned to another job)."""

    job_id: JobId
    node_id: NodeId
    slot: int
    seq: int


class HandIn(Msg, frozen=True):
    """What came of (part of) a lease. Sent again until acknowledged by HandInAck with the same (token, seq).
    `ended`: the lease is over; whatever of it is in neither results nor give_back is lost and runs again."""

    job_id: JobId
    node_id: NodeId
    slot: int
    token: Token
    seq: int
    start: int
    stop: int
    """Bounds of the lease."""
    results: tuple[ResultPage, ...] = ()
    give_back: tuple[Interval, ...] = ()
    deaths: tuple[Death, ...] = ()
    retry_later: tuple[RetryLater, ...] = ()
    ended: bool = False
    run_s: float = 0.0
    """Time spent in tasks since the last hand-in of this lease."""
    reduced: bool = False
    cpu_s: float = 0.0
    pull: Pull | None = None
    """The slot's next Pull, in the same message."""
    told: bool = False
    """The agent has sent these results of single calls to their client itself, as CallResults: the owner keeps them
    only until the client has named them."""
    wasted_s: float = 0.0
    """Run time of a task that was stopped for the machine's owner, without what its checkpoint keeps. Such a task is in
    give_back: it has not failed."""


class SaveCheckpoint(Msg, frozen=True):
    """What task `index` keeps of its state, in place of what it kept before. Answered once it is durable.
    -> Done | Refused (the lease does not stand, or the task is done: the state is of no use)"""

    job_id: JobId
    node_id: NodeId
    token: Token
    index: int
    state: Blob


class AssignRefused(Msg, frozen=True):
    """The agent cannot run this job (environment failed, Python missing, node drains). `fatal`: no node could
    (the resolver's own words): the job fails with `message`."""

    job_id: JobId
    node_id: NodeId
    message: str
    fatal: bool
    kind: str = "environment"


class NodeLog(Msg, frozen=True):
    """Published on log(job_id): output lines of tasks."""

    job_id: JobId
    node: str
    lines: tuple[LogLine, ...]


# ---------------------------------------------------------------- coordinator -> agent (subject node(id))


class BeatAck(Msg, frozen=True):
    """want_spec: send the NodeSpec again. drain: the operator wants the node to take no more work."""

    seq: int
    want_spec: bool = False
    drain: bool = False
    epoch: int = 0
    interval_s: float = BEAT_INTERVAL_S
    """Seconds from one beat to the next from now on: they grow with the number of nodes."""


class NameLeases(Msg, frozen=True):
    """To every agent, from a new owner: whoever works for this job says so now (Held) instead of with its next beat."""

    job_id: JobId
    epoch: int


class LeaderHere(Msg, frozen=True):
    """To every agent, from a new leader: it knows of no node yet, and those at rest would not beat for a while."""

    epoch: int


class Assign(Msg, frozen=True):
    """The slot shall work for the job from now on (until the next Assign of the slot): it finishes what it runs,
    gives back what it has not begun of other jobs, and pulls. spec is None for 'no job'.
    Highest (epoch, seq) counts."""

    slot: int
    seq: int
    epoch: int
    spec: JobSpec | None


class Lease(Msg, frozen=True):
    """A range for a slot. `pages` covers [start, stop), without those named in the Pull.
    budget_s: after it, hand in what is done and give the rest back. alone: a suspect, run with nothing else.
    attempt: number of earlier attempts of this (single) task."""

    job_id: JobId
    epoch: int
    token: Token
    slot: int
    pull_seq: int
    start: int
    stop: int
    budget_s: float
    pages: tuple[InputPage, ...]
    alone: bool = False
    attempt: int = 0
    checkpoints: tuple[tuple[int, Blob], ...] = ()
    """What tasks of the range saved of their state when they were begun before: (task, state)."""
    acks: tuple[tuple[Token, int], ...] = ()
    """As HandInAck has them: what waited to be told goes along."""


class TakeBack(Msg, frozen=True):
    """Give back about `share` (0 to 1) of what is not begun of this lease; 1.0 for a prefetched lease: all.
    Answered by HandIn(give_back=...), with an empty one where nothing is left."""

    job_id: JobId
    epoch: int
    token: Token
    slot: int
    share: float


class Revoke(Msg, frozen=True):
    """Stop working on these leases now and forget them (job cancelled or ended, task recorded elsewhere).
    tokens empty: every lease of the job, and forget the job."""

    job_id: JobId
    epoch: int
    tokens: tuple[Token, ...] = ()
    reason: str = ""


class HandInAck(Msg, frozen=True):
    """These hand-ins are durable: (token, seq) each."""

    job_id: JobId
    epoch: int
    acks: tuple[tuple[Token, int], ...]


Message = (
    GetPool | SubmitJob | ListJobs | ListNodes | FindJob | SignBlobs | NodeControl | ListCoordinators
    | DrainCoordinator | NodeAnew
    | AppendInputs | FetchResults | GetJob | CancelJob | RetryFailed | Ping | GetLogs
    | AppendCalls | SyncCalls | CancelCalls
    | PoolInfo | Submitted | Refused | Done | Appended | Results | JobStatus | Jobs | Nodes | SignedBlobs | Coordinators
    | LogLines | CallResults | CallsUnknown | CallSlot | OwnerHere
    | OwnerReport | Place | Verdict | PoolState | Echo | Handover
    | Beat | Held | Bye | Pull | Unpull | HandIn | SaveCheckpoint | AssignRefused | NodeLog
    | BeatAck | LeaderHere | NameLeases | Assign | Lease | TakeBack | Revoke | HandInAck
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Msg) -> bytes:
    """Bytes for NATS."""
    return _encoder.encode(message)


def decode(data: bytes) -> Any:
    """Message from bytes. Raises msgspec.ValidationError for anything that is not one."""
    return _decoder.decode(data)
