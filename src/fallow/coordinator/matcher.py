"""Runs the matching when something changed, and sends what the plan changes. Only the leader's runs.

The planner is kept and told of what changed, so that a plan costs what changed and not what there is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fallow.coordinator.capability import Capability
from fallow.coordinator.context import Context
from fallow.coordinator.directory import Directory
from fallow.coordinator.kept_planner import KeptPlanner
from fallow.coordinator.peers import Peers
from fallow.coordinator.tied_slots import TiedSlots
from fallow.core.admission import within_limits
from fallow.core.call_hold import CallHold
from fallow.core.demand import in_last_turn, served_in_turn
from fallow.core.matching import SERVED_HALF_LIFE_S, JobDemand, too_large
from fallow.model.ids import JobId, NodeId
from fallow.model.job import JobKind, JobSpec
from fallow.model.node import NodeSpec
from fallow.wire import subjects
from fallow.wire.messages import Verdict

LEAST_INTERVAL_S = 0.005
SHARE_OF_TIME = 0.1
"""Plans take no more of this coordinator's time than that: in a large pool they are made less often."""
TICK_S = 1.0
TICK_SHARE_OF_TIME = 0.005
"""Plans that nothing asked for (jobs were served unequally) are to delay fewer than one lease in a hundred."""
TICK_MOST_S = 20.0
MISFIT_GRACE_S = 5.0
"""A job that no node could run waits this long for one that can before it is failed in words."""
MISFIT_SETTLED_GRACE_S = 1.0
"""The same where the nodes have been the same ones for MISFIT_GRACE_S: none of them is just coming."""
DEMAND_LIMIT = 1 << 20
COMPARE_S = 60.0
"""Between two comparisons of all that the kept planner believes with what the nodes have."""
COMPARE_NODES = 256
"""So many of them at a time: nobody is to wait for it."""


@dataclass(slots=True)
class _Wanting:
    """A job as the plan sees it, whoever owns it. `refused`: nodes, with words where they are known."""

    demand: JobDemand
    refused: dict[NodeId, str]
    busy: bool


class Matcher:
    """See the module. `kick` may be called at any rate."""

    def __init__(self, context: Context, directory: Directory, peers: Peers) -> None:
        self._context = context
        self._directory = directory
        self._peers = peers
        self._scheduled = False
        self._ran_at = -1e9
        self._took_s = 0.0
        self._holds_until = -1e9
        self._misfit_since: dict[str, float] = {}
        self._membership = -1
        self._members_since = 0.0
        self._kept = KeptPlanner(context.nodes)
        self._compared_at = 0.0
        self._served: dict[JobId, float] = {}
        self._tied = TiedSlots(context.nodes)
        self._waiting: dict[JobId, float] = {}
        """Jobs of which something is to run and nothing runs: since when."""
        self._holds: dict[JobId, CallHold] = {}
        self._capability = Capability(context, directory)

    def hold(self, wait_s: float) -> None:
        """Plan nothing for so long: nodes are being heard of for the first time."""
        self._holds_until = self._context.now() + wait_s

    def kick(self) -> None:
        """Plan soon: at once if the last plan is a while ago. Where another leads, tell it what changed."""
        if not self._context.session.leads:
            self._peers.changed()
            return
        if self._scheduled:
            return
        self._scheduled = True
        interval_s = min(TICK_S, max(LEAST_INTERVAL_S, self._took_s / SHARE_OF_TIME))
        delay = max(0.0, max(self._ran_at + interval_s, self._holds_until) - self._context.now())
        if delay:
            self._context.loop.call_later(delay, self._run)
        else:
            self._context.loop.call_soon(self._run)

    def tick(self, now: float) -> None:
        self._capability.tick(now)
        if self._context.session.leads and (not self._kept.is_compared or now - self._compared_at >= COMPARE_S):
            self._compared_at = now
            self._kept.compare(COMPARE_NODES)
        interval_s = min(TICK_MOST_S, max(TICK_S, self._took_s / TICK_SHARE_OF_TIME))
        if self._context.session.leads and now - self._ran_at >= interval_s and not self._scheduled:
            self.kick()

    def _run(self) -> None:
        self._scheduled = False
        if not self._context.session.leads:
            return
        now = self._context.now()
        started = time.perf_counter()
        elapsed = min(now - self._ran_at, TICK_S * 2)
        self._ran_at = now
        nodes = self._context.nodes
        jobs = self._wanting(elapsed)
        demands = self._within_limits([job.demand for job in jobs.values()])
        result = self._kept.plan(self._tied.demands(demands))
        self._tied.settle(demands, result, now)
        nodes.shares = result.shares
        for job_id, owned in self._directory.active.items():
            owned.progress.slots = max(1, result.shares.get(job_id, 0))
        nodes.assign(result.moves, now)
        self._check_misfits(jobs, now)
        self._took_s = time.perf_counter() - started

    def _wanting(self, elapsed: float) -> dict[JobId, _Wanting]:
        """Every job that has not ended, with how much it was served of late."""
        keep = 0.5 ** (elapsed / SERVED_HALF_LIFE_S)
        holding = self._context.nodes.shares
        found: dict[JobId, _Wanting] = {}
        served: dict[JobId, float] = {}
        waiting: dict[JobId, float] = {}
        holds: dict[JobId, CallHold] = {}
        now = self._ran_at

        def waited_s(job_id: JobId, waits: bool) -> float:
            if not waits:
                return -1.0
            since = waiting[job_id] = self._waiting.get(job_id, now)
            return now - since

        def demand(spec: JobSpec, want: int, waits: bool, calls: int, refused: Iterable[NodeId]) -> JobDemand:
            job_id = spec.job_id
            turn = served_in_turn(spec.kind, waited_s(job_id, waits), served[job_id])
            if spec.kind is JobKind.CALLS:
                hold = holds[job_id] = self._holds.get(job_id) or CallHold()
                kept = hold.look(calls, want, now)
                want, turn = kept, turn if want or not kept else in_last_turn(turn)
            return JobDemand(spec, min(want, DEMAND_LIMIT), turn, len(found), frozenset(refused))

        own = {job_id: job for job_id, job in self._directory.active.items() if not job.progress.is_final}
        for job_id, owned in own.items():
            served[job_id] = owned.served = owned.served * keep + owned.progress.busy_slots * elapsed
            progress = owned.progress
            wanted = demand(owned.spec, progress.demand, progress.waits, progress.cursor, owned.refused)
            found[job_id] = _Wanting(wanted, dict(owned.refused), bool(progress.busy_slots))
        for job_id, report in self._peers.jobs().items():
            if job_id in found or report.info.state not in ("open", "running"):
                continue
            before = self._served.get(job_id, report.served)
            served[job_id] = before * keep + min(holding.get(job_id, 0), report.want) * elapsed
            counts = report.info.counts
            wanted = demand(report.spec, report.want, report.waits, counts.inputs, report.refused)
            found[job_id] = _Wanting(wanted, dict.fromkeys(report.refused, ""), counts.running > 0)
        self._served, self._waiting, self._holds = served, waiting, holds
        return found

    def _within_limits(self, demands: list[JobDemand]) -> list[JobDemand]:
        if not self._context.limits:
            return demands
        most = within_limits(demands, self._context.limits)
        return [replace(d, want=min(d.want, most.get(d.spec.job_id, d.want))) for d in demands]

    def _check_misfits(self, jobs: dict[JobId, _Wanting], now: float) -> None:
        """Fail jobs for which the pool has nodes, but for a while now none that could run them."""
        nodes = self._context.nodes
        if nodes.membership != self._membership:
            self._membership, self._members_since = nodes.membership, now
        specs: list[NodeSpec] | None = None
        settled = now - self._members_since >= MISFIT_GRACE_S
        grace_s = MISFIT_SETTLED_GRACE_S if settled else MISFIT_GRACE_S
        seen: set[str] = set()
        for job_id, job in jobs.items():
            spec = job.demand.spec
            if job.busy or (spec.kind is JobKind.CALLS and not job.demand.want):
                continue
            if self._kept.surely_fits(job_id):
                continue
            if specs is None:
                specs = nodes.alive_specs()
            usable = [node for node in specs if node.node_id not in job.refused]
            reason = too_large(spec, usable) if usable else None
            kind = "python" if reason is not None and "needs Python" in reason else "too_large"
            if specs and not usable:
                words = sorted(set(job.refused.values()))
                reason = f"every node of the pool refused {spec.name!r}: {'; '.join(words[:3])}"
                kind = "environment"
            if reason is None:
                continue
            seen.add(job_id)
            if now - self._misfit_since.setdefault(job_id, now) >= grace_s:
                self._fail(job_id, reason, kind)
        for gone in [j for j in self._misfit_since if j not in seen]:
            del self._misfit_since[gone]

    def _fail(self, job_id: JobId, reason: str, kind: str) -> None:
        owned = self._directory.active.get(job_id)
        if owned is not None:
            owned.perform(owned.progress.fail(reason, kind))
        else:
            verdict = Verdict(job_id, self._context.session.leader_term, reason, kind)
            self._context.connection.send(subjects.job(job_id), verdict)
