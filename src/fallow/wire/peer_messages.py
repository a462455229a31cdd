"""Messages between coordinators. See wire.messages for what holds of all."""

from __future__ import annotations

from msgspec import Struct, field

from fallow.model.ids import JobId, NodeId
from fallow.model.job import JobInfo, JobSpec
from fallow.model.parts import HeldLease
from fallow.wire.message import Msg


class JobReport(Struct, frozen=True, array_like=True, gc=False):
    """What the leader must know of a job, and listings show. The spec comes without the function's bytes."""

    spec: JobSpec
    info: JobInfo
    want: int
    served: float
    refused: tuple[NodeId, ...] = ()
    waits: bool = False
    """Something is to run, and nothing runs."""


class OwnerReport(Msg, frozen=True):
    """Published on OWNERS by every owner, once a second and when its jobs' wants change. A job that is missing from
    its owner's newest report is not the owner's any more."""

    owner: str
    seq: int
    jobs: tuple[JobReport, ...]
    tasks_done: dict[NodeId, int] = field(default_factory=dict)
    """Tasks done by node since the last report."""
    leaving: bool = False
    wasted_s: dict[NodeId, float] = field(default_factory=dict)
    """Run time lost to owners' return since the last report."""


class Place(Msg, frozen=True):
    """Leader to the owner of a job: have this slot work for it. The owner adds the spec and tells the agent
    (Assign, under the leader's epoch and seq). `share`: slots that the job has by the plan."""

    job_id: JobId
    node_id: NodeId
    slot: int
    seq: int
    epoch: int
    share: int


class Verdict(Msg, frozen=True):
    """Leader to the owner of a job: no node of the pool can run it; the job fails with these words."""

    job_id: JobId
    epoch: int
    reason: str
    kind: str


class PoolState(Msg, frozen=True):
    """Published on OWNERS by the leader, once a second."""

    leader: str
    epoch: int
    slots: int
    strangers: bool = False


class Echo(Msg, frozen=True):
    """From a coordinator to itself: how late it is heard says how far behind that is."""

    seq: int


class Handover(Msg, frozen=True):
    """A live owner has released this job in a commit of its own; `to` (empty: whoever is first) is to take it up at
    once, and adopt these leases without waiting for agents to name them."""

    job_id: JobId
    epoch: int
    to: str
    leases: tuple[tuple[NodeId, HeldLease], ...]
