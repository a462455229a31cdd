"""Nodes by class: those that can run the same jobs lie together, by how many slots of them are free.

A plan asks 'where is a free slot for such a job' a few thousand times; the answer must not look at every node. So fit
is decided once for a class and a kind of demand, and free nodes are found in buckets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from msgspec import Struct
from msgspec.structs import replace

from fallow.core.demand import JobDemand, NodeView
from fallow.core.fit import misfit
from fallow.core.gpus import GpuBook, fits, room
from fallow.model.ids import JobId, NodeId
from fallow.model.job import GpuSpec
from fallow.model.node import NodeSpec

NOTHING: tuple[JobId | None, ...] = ()

LEAST_SPEED, MOST_SPEED = 1e-6, 1e9
"""Nodes may claim anything."""

Need = tuple[str, int, int, GpuSpec, int, bool]
"""What decides where a job could run: Python, CPUs, bytes of memory, GPUs, least tier of sandbox, network."""


class PlannedJob:
    """A job as the planner keeps it: its demand, and the heads of the groups of slots that it has."""

    __slots__ = (
        "count",
        "cpu",
        "demand",
        "gpu",
        "gpus",
        "held",
        "is_plain",
        "job_id",
        "need",
        "nodes",
        "refused",
        "share",
        "whole_gpus",
    )

    def __init__(self, demand: JobDemand) -> None:
        spec = demand.spec
        self.demand = demand
        self.job_id = spec.job_id
        self.cpu = spec.resources.cpu
        self.gpu = spec.resources.gpu
        self.gpus = self.gpu.count
        """Devices that a group needs, whole ones or a part of one."""
        self.whole_gpus = self.gpus if self.gpu.share >= 1 else 0
        need = spec.resources
        self.need: Need = (
            spec.env.python,
            self.cpu,
            need.memory_bytes,
            need.gpu,
            spec.least_tier,
            spec.network,
        )
        self.refused = demand.refused
        self.is_plain = not demand.refused and not spec.max_nodes
        """All nodes of a class are the same to it."""
        self.count = 0
        self.share = 0
        self.held: dict[NodeClass, dict[int, int]] = {}
        """By number of node: a bit for each slot that begins a group of the job. Numbers cost the garbage collector
        nothing."""
        self.nodes: dict[PlannedNode, int] = {}
        """Groups by node; kept for jobs with max_nodes alone."""


class PlannedNode(Struct, eq=False):
    """A node as the planner keeps it. A struct, since a hundred thousand are made at once."""

    number: int
    node_id: NodeId
    kind: NodeClass
    memory_bytes: int
    free: int
    """Bit s is set while slot s is free."""
    free_count: int
    gpus_free: int
    """Devices that nobody has any of."""
    heads: tuple[PlannedJob | None, ...]
    """The job of each slot that begins a group; one object for many nodes that are alike."""
    is_open: bool = True
    gpus: GpuBook | None = None
    """Whose devices are whose, by the first slot of the group; None: there are none, or nobody has had one yet."""
    before: tuple[JobId | None, ...] | None = None
    """What `heads` said when the shell last heard of it (NOTHING: no slot had any); None: nothing has changed since."""

    def pause(self, slots: Iterable[int]) -> None:
        """Nobody gets these; before the node is in any bucket."""
        for slot in slots:
            self.free &= ~(1 << slot)
        self.free_count = self.free.bit_count()

    def free_groups(self, cpu: int) -> Sequence[int]:
        """First slots of disjoint groups of `cpu` adjacent free slots, from the lowest."""
        if cpu == 1:
            return range(self.free_count) if self.free_count == len(self.heads) else slots_of(self.free)
        starts: list[int] = []
        mask = self.free
        while mask:
            at = (mask & -mask).bit_length() - 1
            group = ((1 << cpu) - 1) << at
            if mask & group == group:
                starts.append(at)
                mask &= ~group
            else:
                mask &= mask - 1
        return starts

    def gpu_room(self, job: PlannedJob, most: int, without: Iterable[int] = ()) -> int:
        """For how many groups of the job there are GPUs, at most `most`, once the groups at `without` are gone."""
        if not job.gpus:
            return most
        if self.gpus is None:
            return min(most, self.kind.gpu_groups(job))
        return self.gpus.room(job.gpu, most, without)

    def take_gpus(self, job: PlannedJob, slot: int) -> None:
        """The group that begins at `slot` gets the devices that it needs; there is room for them."""
        if self.gpus is None:
            spec = self.kind.spec
            self.gpus = GpuBook(spec.devices, spec.shares_gpus)
        self.gpus.take(slot, job.gpu)
        self.gpus_free = self.gpus.whole_count


class NodeClass:
    """Nodes with the same slots, Pythons, devices and sandboxes, and nearly the same speed and memory (within an
    eighth)."""

    __slots__ = (
        "_gpu_speed",
        "_speed",
        "buckets",
        "device_count",
        "free_nodes",
        "key",
        "mask",
        "memory_floor",
        "node_count",
        "nothing",
        "open_count",
        "slots",
        "spec",
    )

    def __init__(self, key: tuple[object, ...], view: NodeView, floor: int, ceiling: int) -> None:
        spec = view.spec
        self.key = key
        self.spec = replace(spec, memory_bytes=ceiling)
        self.memory_floor = floor
        self.slots = spec.slots
        self.open_count = spec.slots - len(view.paused)
        """Slots of each node that are not paused."""
        self.nothing = nothing(spec.slots)
        self.mask = (1 << spec.slots) - 1
        """Of its slots."""
        self.device_count = len(spec.devices)
        self._speed = speed_step(spec.speed)
        self._gpu_speed = max((speed_step(device.speed) for device in spec.devices), default=0)
        self.node_count = 0
        """Open ones."""
        self.free_nodes = 0
        """Those in the buckets: with a slot that is free."""
        self.buckets: list[list[dict[PlannedNode, None]]] = [
            [{} for _ in range(spec.slots + 1)] for _ in range(self.device_count + 1)
        ]
        """By free GPUs, then by free slots; dicts serve as sets that keep their order."""

    def new_node(self, spec: NodeSpec, number: int) -> PlannedNode:
        """One of the class, of which nobody has anything."""
        return PlannedNode(
            number, spec.node_id, self, spec.memory_bytes, self.mask, self.slots, self.device_count, self.nothing
        )

    def groups_per_node(self, job: PlannedJob) -> int:
        most = self.open_count // job.cpu
        return min(most, self.gpu_groups(job)) if job.gpus else most

    def gpu_groups(self, job: PlannedJob) -> int:
        """For how many groups of a job that needs GPUs a node has them, while nobody else has any."""
        return room(self.spec.devices, job.gpu, self.spec.shares_gpus)

    def speed(self, job: PlannedJob) -> int:
        """How fast it is at what the job needs, in steps."""
        return self._gpu_speed if job.gpus else self._speed

    def fits(self, job: PlannedJob) -> bool:
        """Whether at least some nodes of the class could run it; see `always`."""
        return misfit(job.demand.spec, self.spec) is None

    def always(self, job: PlannedJob) -> bool:
        """Of a class that fits: whether all of its nodes could run the job."""
        return job.is_plain and job.demand.spec.resources.memory_bytes <= self.memory_floor

    def insert(self, node: PlannedNode) -> None:
        if node.free_count:
            self.buckets[node.gpus_free][node.free_count][node] = None
            self.free_nodes += 1

    def take_out(self, node: PlannedNode) -> None:
        if node.free_count:
            del self.buckets[node.gpus_free][node.free_count][node]
            self.free_nodes -= 1

    def fullest(self, gpus: int, cpu: int) -> tuple[int, dict[PlannedNode, None]] | None:
        """(free slots, nodes): the most free nodes with that many free GPUs and at least `cpu` free slots."""
        best: tuple[int, dict[PlannedNode, None]] | None = None
        for row in self.buckets[gpus:]:
            for free in range(self.slots, cpu - 1, -1):
                if best is not None and free <= best[0]:
                    break
                if row[free]:
                    best = (free, row[free])
                    break
        return best


@lru_cache(maxsize=4096)
def slots_of(mask: int) -> tuple[int, ...]:
    """The bits that are set, from the lowest."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)


@cache
def nothing(slots: int) -> tuple[None, ...]:
    """What so many slots have that have nothing."""
    return (None,) * slots


def class_key(spec: NodeSpec, paused_count: int = 0) -> tuple[object, ...]:
    """(slots, how many of them are paused, Pythons, sandboxes, devices, speed, bounds of memory): nodes with equal keys
    are of one class."""
    memory_bytes, speed, devices = spec.memory_bytes, spec.speed, spec.devices
    shift = memory_bytes.bit_length() - 3
    if shift < 0:
        shift = 0
    low = (memory_bytes >> shift) << shift
    return (
        spec.slots,
        paused_count,
        spec.pythons,
        spec.tier,
        spec.least_tier,
        spec.network,
        (spec.shares_gpus, *[(d.model, d.memory_bytes, d.fault, speed_step(d.speed)) for d in devices])
        if devices
        else (),
        speed_step(speed) if speed else 0,
        low,
        low + (1 << shift) - 1,
    )


def speed_step(speed: float) -> int:
    """Speeds within some 40 % of each other are alike; one that was not measured counts as the reference's."""
    return round(2 * math.log2(min(max(speed, LEAST_SPEED), MOST_SPEED))) if speed > 0 else 0


def allowed(job: PlannedJob, node: PlannedNode) -> bool:
    """Whether this node of a class that fits may get (more of) the job: what the class does not decide."""
    demand = job.demand
    if node.node_id in demand.refused or demand.spec.resources.memory_bytes > node.memory_bytes:
        return False
    most = demand.spec.max_nodes
    return not most or node in job.nodes or len(job.nodes) < most


def plain_heads(view: NodeView, jobs: dict[JobId, PlannedJob]) -> list[tuple[int, PlannedJob]] | None:
    """`heads_of` where all can stay as it is and there is nothing to look into; None: see there."""
    found: list[tuple[int, PlannedJob]] = []
    end = 0
    spec = view.spec
    slots = spec.slots
    assigned = view.assigned
    has_gpus = False
    for slot in sorted(assigned) if len(assigned) > 1 else assigned:
        job_id = assigned[slot]
        if job_id is None:
            continue
        job = jobs.get(job_id)
        if job is None or not job.is_plain or slot < end:
            return None
        if job.gpus:
            if has_gpus or not room(spec.devices, job.gpu, spec.shares_gpus):
                return None
            has_gpus = True
        end = slot + job.cpu
        if end > slots:
            return None
        found.append((slot, job))
    return found


def heads_of(view: NodeView, jobs: dict[JobId, PlannedJob]) -> dict[int, PlannedJob]:
    """The groups that the node's assignments make: unknown jobs, those that refused the node, groups that overlap a
    lower one, paused slots and jobs for which there are too few devices now are left out."""
    heads: dict[int, PlannedJob] = {}
    end = 0
    for slot, job_id in sorted(view.assigned.items()):
        job = jobs.get(job_id) if job_id is not None else None
        if job is None or (job.refused and view.spec.node_id in job.refused):
            continue
        if slot < end or slot + job.cpu > view.spec.slots:
            continue
        if not view.paused.isdisjoint(range(slot, slot + job.cpu)):
            continue
        heads[slot] = job
        end = slot + job.cpu
    for slot in _without_devices(view.spec, heads):
        del heads[slot]
    return heads


def _without_devices(spec: NodeSpec, heads: dict[int, PlannedJob]) -> list[int]:
    """Groups for which there are no devices beside the others. Which has which is not known: where they do not fit as
    they come, they may in the order of who accepts the fewest."""
    needs = [(slot, job.gpu) for slot, job in heads.items() if job.gpus]
    left = _left_out(spec, needs)
    if left:
        needs.sort(key=lambda item: (sum(fits(device, item[1]) for device in spec.devices), -item[1].share))
        if not _left_out(spec, needs):
            return []
    return left


def _left_out(spec: NodeSpec, needs: list[tuple[int, GpuSpec]]) -> list[int]:
    if not needs:
        return []
    book = GpuBook(spec.devices, spec.shares_gpus)
    return [slot for slot, need in needs if book.take(slot, need) is None]
