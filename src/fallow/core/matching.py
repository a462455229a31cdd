"""Which slot works for which job: a pure plan over a snapshot.

Slots are shared max-min fairly: each round gives every job that still wants slots one more, those first that were
served least of late. A slot stays with its job while that job is entitled to it, so that warm workers and caches
keep their use; slots that nobody needs keep their last job too (a standing job of single calls finds them parked).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fallow.model.ids import JobId, NodeId, SlotKey
from fallow.model.job import JobSpec
from fallow.model.node import NodeSpec

SERVED_HALF_LIFE_S = 10.0


@dataclass(slots=True)
class JobDemand:
    """What the matcher knows of a job. `want`: tasks that could run at once now. `served`: slot seconds of late."""

    spec: JobSpec
    want: int
    served: float = 0.0
    order: int = 0
    refused: frozenset[NodeId] = frozenset()


@dataclass(slots=True)
class NodeView:
    """A live node and what its slots are assigned to now."""

    spec: NodeSpec
    assigned: Mapping[int, JobId | None]
    open: bool = True
    """False while it drains: it gets nothing new."""


@dataclass(slots=True)
class Plan:
    """Every slot's job (None: nothing), for those whose assignment changes."""

    changes: dict[SlotKey, JobId | None] = field(default_factory=dict)
    shares: dict[JobId, int] = field(default_factory=dict)
    """How many slots each job has after the plan."""


def misfit(spec: JobSpec, node: NodeSpec) -> str | None:
    """Why the node could never run the job, in words; None if it could."""
    need = spec.resources
    if spec.env.python and spec.env.python not in node.pythons:
        return f"needs Python {spec.env.python}, and {node.name} has {', '.join(node.pythons)}"
    if need.cpu > node.slots:
        return f"needs {need.cpu} CPUs, and {node.name} lends {node.slots}"
    if need.memory_bytes > node.memory_bytes:
        return f"needs {need.memory_bytes / 1e9:.3g} GB of memory, and {node.name} has {node.memory_bytes / 1e9:.3g} GB"
    if need.gpu.count:
        fitting = [
            device
            for device in node.devices
            if device.memory_bytes >= need.gpu.min_memory_bytes
            and (not need.gpu.models or any(m.lower() in device.model.lower() for m in need.gpu.models))
        ]
        if len(fitting) < need.gpu.count:
            kinds = ", ".join(f"{d.model} ({d.memory_bytes / 1e9:.3g} GB)" for d in node.devices) or "no GPU"
            wanted = " or ".join(need.gpu.models) or "any model"
            least = f" with {need.gpu.min_memory_bytes / 1e9:.3g} GB" if need.gpu.min_memory_bytes else ""
            return f"needs {need.gpu.count} GPU of {wanted}{least}, and {node.name} has {kinds}"
    return None


def too_large(spec: JobSpec, nodes: Sequence[NodeSpec]) -> str | None:
    """In words, if there are nodes and none of them could ever run the job."""
    reasons = [misfit(spec, node) for node in nodes]
    if not nodes or any(reason is None for reason in reasons):
        return None
    shown = "; ".join(reason for reason in reasons[:3] if reason)
    more = f"; and {len(reasons) - 3} nodes more" if len(reasons) > 3 else ""
    return f"no node of this pool can run {spec.name!r}: it {shown}{more}"


def plan(jobs: Sequence[JobDemand], nodes: Sequence[NodeView]) -> Plan:
    """Assign slots to jobs. Jobs ask for `cpu` adjacent slots a task and get the first of each group."""
    by_id = {job.spec.job_id: job for job in jobs}
    current: dict[SlotKey, JobId] = {}
    free: dict[NodeId, list[int]] = {}
    for node in nodes:
        taken: set[int] = set()
        for slot, job_id in sorted(node.assigned.items()):
            if job_id is not None and job_id in by_id and slot not in taken:
                current[node.spec.node_id, slot] = job_id
                taken.update(range(slot, slot + by_id[job_id].spec.resources.cpu))
        if node.open:
            free[node.spec.node_id] = [s for s in range(node.spec.slots) if s not in taken]

    total = sum(node.spec.slots for node in nodes if node.open)
    shares = _fair_shares(jobs, total)
    have: dict[JobId, list[SlotKey]] = {}
    for key, job_id in current.items():
        have.setdefault(job_id, []).append(key)

    # What is above its share is up for taking, jobs that want nothing first; it is taken only when needed.
    result = dict(current)
    spare: list[SlotKey] = []
    for job_id, keys in sorted(have.items(), key=lambda item: (by_id[item[0]].want > 0, by_id[item[0]].order)):
        keys.sort()
        spare += reversed(keys[shares.get(job_id, 0) :])
    open_nodes = {node.spec.node_id: node for node in nodes if node.open}
    for job in sorted(jobs, key=lambda j: (j.served, j.order)):
        lacking = shares.get(job.spec.job_id, 0) - len(have.get(job.spec.job_id, ()))
        used = {key[0] for key in have.get(job.spec.job_id, ())}
        while lacking > 0:
            taken_slot = _take_slot(job, open_nodes, free, spare, result, by_id, used)
            if taken_slot is None:
                break
            result[taken_slot] = job.spec.job_id
            used.add(taken_slot[0])
            lacking -= 1

    out = Plan()
    for node in nodes:
        for slot in range(node.spec.slots):
            key = (node.spec.node_id, slot)
            after = result.get(key)
            if after != node.assigned.get(slot):
                out.changes[key] = after
    for job_id in result.values():
        out.shares[job_id] = out.shares.get(job_id, 0) + 1
    return out


def _fair_shares(jobs: Sequence[JobDemand], slots: int) -> dict[JobId, int]:
    """Max-min fair numbers of (groups of) slots, the least served first where they do not go round."""
    wanting = sorted((job for job in jobs if job.want > 0), key=lambda job: (job.served, job.order))
    shares: dict[JobId, int] = {}
    left = slots
    while wanting and left > 0:
        level = max(1, left // sum(job.spec.resources.cpu for job in wanting))
        still: list[JobDemand] = []
        for job in wanting:
            cpu = job.spec.resources.cpu
            give = min(level, job.want - shares.get(job.spec.job_id, 0), left // cpu)
            if give <= 0:
                continue
            shares[job.spec.job_id] = shares.get(job.spec.job_id, 0) + give
            left -= give * cpu
            if shares[job.spec.job_id] < job.want:
                still.append(job)
        wanting = still
    return shares


def _take_slot(
    job: JobDemand,
    nodes: Mapping[NodeId, NodeView],
    free: dict[NodeId, list[int]],
    spare: list[SlotKey],
    result: dict[SlotKey, JobId],
    by_id: Mapping[JobId, JobDemand],
    used: set[NodeId],
) -> SlotKey | None:
    """A free slot (on the node with most of them), else one that another job has beyond its share."""
    spec = job.spec
    cpu = spec.resources.cpu
    gpus = spec.resources.gpu.count

    def fits(node_id: NodeId) -> bool:
        if node_id not in nodes or node_id in job.refused or misfit(spec, nodes[node_id].spec) is not None:
            return False
        if spec.max_nodes and node_id not in used and len(used) >= spec.max_nodes:
            return False
        if gpus:
            mine = sum(
                by_id[other].spec.resources.gpu.count
                for key, other in result.items()
                if key[0] == node_id and other in by_id
            )
            if mine + gpus > len(nodes[node_id].spec.devices):
                return False
        return True

    for node_id in sorted(free, key=lambda n: (-len(free[n]), n)):
        slots = free[node_id]
        if len(slots) < cpu or not fits(node_id):
            continue
        for slot in slots:
            group = range(slot, slot + cpu)
            if all(s in slots for s in group):
                free[node_id] = [s for s in slots if s not in group]
                return node_id, slot
    for at, (node_id, slot) in enumerate(spare):
        if result.get((node_id, slot)) == spec.job_id or not fits(node_id):
            continue
        victim = by_id[result[node_id, slot]]
        width = victim.spec.resources.cpu
        if width >= cpu:
            del spare[at]
            del result[node_id, slot]
            free.setdefault(node_id, []).extend(range(slot + cpu, slot + width))
            return node_id, slot
        keys = [(node_id, s) for s in range(slot, slot + cpu)]
        if all(key in spare or key[1] in free.get(node_id, ()) for key in keys):
            for key in keys:
                if key in spare:
                    spare.remove(key)
                    result.pop(key, None)
                else:
                    free[node_id].remove(key[1])
            return node_id, slot
    return None
