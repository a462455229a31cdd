"""The other coordinators: what they own, who leads, and jobs that pass between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from fallow.coordinator.context import Context
from fallow.coordinator.owned_job import OwnedJob
from fallow.model.ids import JobId, NodeId
from fallow.model.job import Blob, JobInfo, JobSpec
from fallow.wire import subjects
from fallow.wire.messages import (
    CoordinatorInfo,
    DrainCoordinator,
    Handover,
    JobReport,
    Msg,
    NodeAnew,
    OwnerReport,
    PoolState,
)

REPORT_S = 1.0
REST_REPORT_S = 1.7
"""While this owner has no job: two reports may be lost before it counts as silent."""
S_PER_NODE = 0.00005
"""A report names the nodes that worked: the more they are, the less often it is made."""
MANY = 100_000
"""A job that wants so many slots gets what there is, however many more it wants."""
SILENT_S = 5.0
"""An owner not heard of for so long has no jobs any more as far as plans and listings go."""


@dataclass(slots=True)
class Peer:
    seen: float
    seq: int
    jobs: dict[JobId, JobReport] = field(default_factory=dict)


def _wants(peer: Peer) -> dict[JobId, tuple[int, str, tuple[NodeId, ...]]]:
    """What a plan goes by: the same as before needs no new one."""
    return {
        job_id: (min(job.want, MANY), job.info.state, job.refused)
        for job_id, job in peer.jobs.items()
        if job.info.state in ("open", "running")
    }


def without_bytes(spec: JobSpec) -> JobSpec:
    """The spec as others need it: what it asks for, not its code."""
    env = spec.env
    if env.modules is not None and env.modules.data is not None:
        env = msgspec.structs.replace(env, modules=Blob(env.modules.digest, env.modules.size))
    return msgspec.structs.replace(spec, env=env, function=Blob(spec.function.digest, spec.function.size))


def name_of(owner: str) -> str:
    """What people call the coordinator: its owner id without the random end that tells its lives apart."""
    return owner.rpartition("-")[0] or owner


class Peers:
    """Publishes this owner's report and keeps those of the others."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._peers: dict[str, Peer] = {}
        self._seq = 0
        self._reported_at = -1e9
        self._scheduled = False
        self._specs: dict[JobId, JobSpec] = {}
        self._tasks_told: dict[NodeId, int] = {}
        self.own_jobs: Callable[[], Iterable[OwnedJob]] = lambda: ()
        self.on_handover: Callable[[Handover], None] = lambda _: None
        self.on_change: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_silent: Callable[[], None] = lambda: None
        """One was lost that did not say that it leaves."""
        self.on_drain: Callable[[DrainCoordinator, str], None] = lambda message, reply: None
        self.on_node_anew: Callable[[NodeAnew], None] = lambda _: None
        self.pool_slots = 0
        self.pool_strangers = False
        self.leader = ""

    # ------------------------------------------------------------ from others

    def receive(self, message: Msg, reply: str) -> None:
        """A message on OWNERS."""
        own = self._context.owner
        match message:
            case OwnerReport() if message.owner != own:
                peer = self._peers.get(message.owner)
                if peer is not None and message.seq <= peer.seq:
                    return
                if peer is None and not message.leaving:
                    self.changed()  # it may not know of us yet, and would have nobody to hand its jobs to
                fresh = Peer(self._context.now(), message.seq, {job.spec.job_id: job for job in message.jobs})
                self._peers[message.owner] = fresh
                if message.leaving:
                    del self._peers[message.owner]
                    self.on_lost()
                self._context.nodes.count_tasks(message.tasks_done)
                self._context.nodes.count_waste(message.wasted_s)
                if message.leaving or peer is None or _wants(peer) != _wants(fresh):
                    self.on_change()
            case PoolState() if message.leader != own:
                self.pool_slots = message.slots
                self.pool_strangers = message.strangers
                self.leader = message.leader
            case Handover():
                if message.to in (own, ""):
                    self.on_handover(message)
            case DrainCoordinator():
                self.on_drain(message, reply)
            case NodeAnew():
                self.on_node_anew(message)
            case _:
                pass

    def jobs(self) -> dict[JobId, JobReport]:
        """Jobs of other owners that were heard of lately."""
        now = self._context.now()
        for owner in [name for name, peer in self._peers.items() if now - peer.seen > SILENT_S]:
            del self._peers[owner]
            self.on_lost()
            self.on_silent()
        return {job_id: job for peer in self._peers.values() for job_id, job in peer.jobs.items()}

    def info(self, job_id: JobId) -> JobInfo | None:
        report = self.jobs().get(job_id)
        return report.info if report is not None else None

    def least_loaded(self) -> tuple[str, int] | None:
        """(owner, number of jobs) of the other that has fewest."""
        self.jobs()
        if not self._peers:
            return None
        counts = {
            name: sum(1 for job in peer.jobs.values() if job.info.state in ("open", "running"))
            for name, peer in self._peers.items()
        }
        return min(counts.items(), key=lambda pair: (pair[1], pair[0]))

    def infos(self) -> list[CoordinatorInfo]:
        """The others that were heard of lately."""
        self.jobs()
        now = self._context.now()
        return [
            CoordinatorInfo(
                owner,
                name_of(owner),
                sum(1 for job in peer.jobs.values() if job.info.state in ("open", "running")),
                owner == self.leader and not self._context.session.leads,
                now - peer.seen,
            )
            for owner, peer in sorted(self._peers.items())
        ]

    @property
    def count(self) -> int:
        return len(self._peers)

    # ------------------------------------------------------------ to others

    def changed(self) -> None:
        """This owner's wants changed: tell the leader soon."""
        if not self._scheduled:
            self._scheduled = True
            nodes = sum(len(owned.heard.seen) for owned in self.own_jobs())
            self._context.loop.call_later(max(0.005, min(REPORT_S, nodes * S_PER_NODE)), self.report)

    def tick(self, now: float) -> None:
        rests = not any(True for _ in self.own_jobs()) and not self._context.tasks_done_here
        if now - self._reported_at >= (REST_REPORT_S if rests else REPORT_S):
            self.report()

    def report(self, leaving: bool = False) -> None:
        self._scheduled = False
        self._reported_at = self._context.now()
        if not self._context.session.shared:
            return
        self._seq += 1
        jobs = tuple(self._job_report(owned) for owned in self.own_jobs())
        tasks, self._context.tasks_done_here = self._context.tasks_done_here, {}
        wasted_s, self._context.wasted_here_s = self._context.wasted_here_s, {}
        connection, owner = self._context.connection, self._context.owner
        report = OwnerReport(owner, self._seq, () if leaving else jobs, tasks, leaving, wasted_s)
        with connection.together():  # the others wake once for both
            connection.send(subjects.OWNERS, report)
            if self._context.session.leads:
                nodes, term = self._context.nodes, self._context.session.leader_term
                connection.send(subjects.OWNERS, PoolState(owner, term, nodes.slot_count(), nodes.has_strangers()))

    def _job_report(self, owned: OwnedJob) -> JobReport:
        return JobReport(
            without_bytes(owned.spec),
            owned.info(),
            owned.progress.demand,
            owned.served,
            tuple(owned.refused),
            owned.progress.waits,
        )
