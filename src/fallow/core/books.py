"""What the planner knows: nodes by class, jobs, and which slot is whose, each kept up in the time of what changes."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Sequence

from fallow.core.classes import (
    NOTHING,
    Need,
    NodeClass,
    PlannedJob,
    PlannedNode,
    class_key,
    heads_of,
    nothing,
    plain_heads,
    slots_of,
)
from fallow.core.demand import JobDemand, NodeView
from fallow.model.ids import JobId, NodeId

NO_HEADS: list[tuple[int, PlannedJob]] = []


class Books:
    """The planner's memory. Says nothing about who ought to have a slot."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, PlannedJob] = {}
        self._nodes: dict[NodeId, PlannedNode] = {}
        self._classes: dict[tuple[object, ...], NodeClass] = {}
        self._fitting: dict[Need, list[NodeClass]] = {}
        self._by_number: list[PlannedNode | None] = []
        self._unused: list[int] = []
        """Numbers that no node has now."""
        self._touched: list[PlannedNode] = []
        """Nodes with slots that changed, and perhaps some that are gone: `before` of those is None."""
        self._slots = 0
        self._free_slots = 0
        self._releases = 0
        self._none_free: dict[Need, int] = {}
        """Nothing free was found for such a need when that many slots had been released."""

    # ------------------------------------------------------------ what changes

    @property
    def jobs(self) -> KeysView[JobId]:
        return self._jobs.keys()

    @property
    def nodes(self) -> KeysView[NodeId]:
        return self._nodes.keys()

    def put_job(self, demand: JobDemand) -> None:
        """A job arrives, or its demand is another now. Put jobs before the nodes that are assigned to them. Slots of
        nodes that it refuses now are free."""
        job = self._jobs.get(demand.spec.job_id)
        if job is None:
            self._jobs[demand.spec.job_id] = PlannedJob(demand)
            return
        job.demand = demand
        if demand.refused == job.refused:
            return
        fresh = demand.refused - job.refused
        job.refused = demand.refused
        job.is_plain = not demand.refused and not demand.spec.max_nodes
        for node_id in sorted(fresh & self._nodes.keys()):
            node = self._nodes[node_id]
            for slot, head in enumerate(node.heads):
                if head is job:
                    self._release(job, node, slot)

    def remove_job(self, job_id: JobId) -> None:
        """The job has ended: its slots are free."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        for held in list(job.held.values()):
            for number, heads in list(held.items()):
                node = self._node(number)
                for slot in slots_of(heads):
                    self._release(job, node, slot)

    def put_node(self, view: NodeView) -> None:
        """A node comes, or is another now; `assigned` is what its slots have, whatever was planned before."""
        spec = view.spec
        node_id = spec.node_id
        if node_id in self._nodes:
            self.remove_node(node_id)
        key = class_key(spec, len(view.paused))
        kind = self._classes.get(key) or self._new_class(key, view)
        self._nodes[node_id] = node = self._number(kind.new_node(spec, 0))
        node.is_open = view.open
        if view.paused:
            node.pause(view.paused)
        heads: dict[int, PlannedJob] | None = None
        if view.assigned:
            heads = heads_of(view, self._jobs)
            self._note_strays(node, view, heads)
        if not node.is_open:
            return
        kind.node_count += 1
        self._slots += kind.open_count
        self._releases += 1
        self._free_slots += kind.open_count
        kind.insert(node)
        if heads:
            for slot, job in heads.items():
                self._book(job, kind, [(node, (slot,))])

    def put_nodes(self, views: Iterable[NodeView]) -> None:
        """`put_node` for many: those that are new, open, and have nothing that must go take a third of the time."""
        nodes, classes, jobs, by_number = self._nodes, self._classes, self._jobs, self._by_number
        fresh: dict[NodeClass, list[PlannedNode]] = {}
        for view in views:
            spec = view.spec
            heads = plain_heads(view, jobs) if view.assigned else NO_HEADS
            if view.open and not view.paused and heads is not None:
                key = class_key(spec)
                kind = classes.get(key) or self._new_class(key, view)
                node = kind.new_node(spec, len(by_number))
                if nodes.setdefault(spec.node_id, node) is node:
                    by_number.append(node)
                    if heads:
                        self._take_up(node, kind, heads)
                    elif kind in fresh:
                        fresh[kind].append(node)
                    else:
                        fresh[kind] = [node]
                    continue
            self._shelve(fresh)
            fresh = {}
            self.put_node(view)
        self._shelve(fresh)

    def _shelve(self, fresh: dict[NodeClass, list[PlannedNode]]) -> None:
        """These nodes, of which everything is free, are in no bucket yet."""
        for kind, nodes in fresh.items():
            count = len(nodes)
            kind.buckets[kind.device_count][kind.slots].update(dict.fromkeys(nodes))
            kind.node_count += count
            kind.free_nodes += count
            self._slots += kind.slots * count
            self._free_slots += kind.slots * count
            self._releases += count

    def _take_up(self, node: PlannedNode, kind: NodeClass, heads: list[tuple[int, PlannedJob]]) -> None:
        """A node that is in no bucket yet comes with these groups."""
        row: list[PlannedJob | None] = list(kind.nothing)
        free, number = node.free, node.number
        for slot, job in heads:
            row[slot] = job
            free &= ~(((1 << job.cpu) - 1) << slot)
            held = job.held.get(kind)
            if held is None:
                held = job.held[kind] = {}
            held[number] = held.get(number, 0) | 1 << slot
            job.count += 1
            if job.gpus:
                node.take_gpus(job, slot)
        node.heads = tuple(row)
        node.free = free
        node.free_count = count = free.bit_count()
        kind.node_count += 1
        self._slots += kind.slots
        self._free_slots += count
        self._releases += 1
        kind.insert(node)

    def _note_strays(self, node: PlannedNode, view: NodeView, heads: dict[int, PlannedJob]) -> None:
        """What is assigned there and cannot stay: the next plan says so."""
        before: list[JobId | None] = list(node.kind.nothing)
        is_astray = False
        for slot, job_id in view.assigned.items():
            if slot < len(before) and job_id is not None:
                before[slot] = job_id
                is_astray |= slot not in heads and (view.open or job_id not in self._jobs)
        if is_astray:
            if not view.open:  # those stay until their jobs are over
                before = [None if job_id in self._jobs else job_id for job_id in before]
            node.before = tuple(before)
            self._touched.append(node)

    def remove_node(self, node_id: NodeId) -> None:
        """The node is gone, and what was assigned there."""
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        for slot, job in enumerate(node.heads):
            if job is not None:
                self._release(job, node, slot)
        node.before = None
        self._by_number[node.number] = None
        self._unused.append(node.number)
        kind = node.kind
        if node.is_open:
            kind.take_out(node)
            kind.node_count -= 1
            self._slots -= kind.open_count
            self._free_slots -= node.free_count
        if not kind.node_count and self._classes.get(kind.key) is kind:
            del self._classes[kind.key]
            self._none_free.clear()
            for classes in self._fitting.values():
                if kind in classes:
                    classes.remove(kind)

    def assigned(self, node_id: NodeId) -> dict[int, JobId] | None:
        """First slot and job of each group on the node; None: there is no such node, or it gets nothing new."""
        node = self._nodes.get(node_id)
        if node is None or not node.is_open:
            return None
        return {slot: head.job_id for slot, head in enumerate(node.heads) if head is not None}

    def nodes_of(self, job_id: JobId) -> list[NodeId]:
        """Nodes on which the job has slots, in no particular order."""
        job = self._jobs.get(job_id)
        return [self._node(number).node_id for held in job.held.values() for number in held] if job is not None else []

    def surely_fits(self, job_id: JobId) -> bool:
        """Whether some open node could run the job; False where that is not seen at one glance."""
        job = self._jobs[job_id]
        memory_bytes = job.demand.spec.resources.memory_bytes
        return job.count > 0 or any(
            kind.node_count > len(job.refused) and memory_bytes <= kind.memory_floor for kind in self._fits(job)
        )

    # ------------------------------------------------------------ books

    def _number(self, node: PlannedNode) -> PlannedNode:
        """Give the node a number that no other has."""
        if self._unused:
            node.number = self._unused.pop()
            self._by_number[node.number] = node
        else:
            node.number = len(self._by_number)
            self._by_number.append(node)
        return node

    def _node(self, number: int) -> PlannedNode:
        node = self._by_number[number]
        assert node is not None
        return node

    def _touch(self, node: PlannedNode) -> None:
        """Remember what its slots have now, until the plan says what became of them."""
        if node.before is None:
            if node.free_count == len(node.heads):
                node.before = NOTHING
            else:
                node.before = tuple(None if head is None else head.job_id for head in node.heads)
            self._touched.append(node)

    def _assign_all(
        self, job: PlannedJob, kind: NodeClass, groups: Iterable[tuple[PlannedNode, Sequence[int]]]
    ) -> None:
        """The job gets the groups of slots that begin there, on nodes of one class; the shell is to hear of it."""
        for node, _ in groups:
            if node.before is None:
                self._touch(node)
        self._book(job, kind, groups)

    def _assign_fresh(self, job: PlannedJob, kind: NodeClass, nodes: Sequence[PlannedNode], groups: int) -> None:
        """The same as `_assign_all`, for nodes of which every slot is free: the first `groups` groups of each."""
        slots, cpu, gpus = kind.slots, job.cpu, job.gpus
        held = job.held.get(kind)
        if held is None:
            held = job.held[kind] = {}
        starts = range(0, cpu * groups, cpu)
        bits = sum(1 << slot for slot in starts)
        left = slots - cpu * groups
        free = (1 << slots) - (1 << cpu * groups)
        one: tuple[PlannedJob | None, ...] = (job, *nothing(cpu - 1))
        heads = one * groups + nothing(left)
        bucket, touched = kind.buckets[kind.device_count][slots], self._touched
        for node in nodes:
            del bucket[node]
            if node.before is None:
                node.before = NOTHING
                touched.append(node)
            node.heads = heads
            node.free = free
            node.free_count = left
            held[node.number] = bits
        if gpus:
            self._take_fresh_gpus(job, nodes, starts)
        if left:
            for node in nodes:
                kind.buckets[node.gpus_free][left][node] = None
        else:
            kind.free_nodes -= len(nodes)
        job.count += groups * len(nodes)
        self._free_slots -= cpu * groups * len(nodes)

    def _take_fresh_gpus(self, job: PlannedJob, nodes: Sequence[PlannedNode], starts: Iterable[int]) -> None:
        """Of nodes that are alike, and of whose devices nobody has any."""
        first: PlannedNode | None = None
        for node in nodes:
            if node.gpus is None and first is not None and first.gpus is not None:
                node.gpus = first.gpus.copy()
                node.gpus_free = first.gpus_free
                continue
            is_first = node.gpus is None
            for slot in starts:
                node.take_gpus(job, slot)
            if is_first:
                first = node

    def _book(self, job: PlannedJob, kind: NodeClass, groups: Iterable[tuple[PlannedNode, Sequence[int]]]) -> None:
        cpu, gpus, few_nodes = job.cpu, job.gpus, job.demand.spec.max_nodes
        mask = (1 << cpu) - 1
        held = job.held.get(kind)
        if held is None:
            held = job.held[kind] = {}
        buckets = kind.buckets
        count = begun = taken = 0
        seen: tuple[object, ...] | None = None
        seen_starts: Sequence[int] = ()
        after: tuple[PlannedJob | None, ...] = ()
        for node, starts in groups:
            free = node.free_count
            del buckets[node.gpus_free][free][node]
            if node.heads is not seen or starts != seen_starts:
                seen, seen_starts = node.heads, starts
                heads = list(node.heads)
                begun = taken = 0
                for slot in starts:
                    heads[slot] = job
                    begun |= 1 << slot
                    taken |= mask << slot
                after = tuple(heads)
            held[node.number] = held.get(node.number, 0) | begun
            node.heads = after
            node.free &= ~taken
            number = len(starts)
            count += number
            if gpus:
                for slot in starts:
                    node.take_gpus(job, slot)
            node.free_count = free = free - cpu * number
            if free:
                buckets[node.gpus_free][free][node] = None
            else:
                kind.free_nodes -= 1
            if few_nodes:
                job.nodes[node] = job.nodes.get(node, 0) + number
        job.count += count
        self._free_slots -= cpu * count

    def _release(self, job: PlannedJob, node: PlannedNode, slot: int) -> None:
        kind = node.kind
        kind.take_out(node)
        self._releases += 1
        if node.before is None:
            self._touch(node)
        heads = list(node.heads)
        heads[slot] = None
        node.heads = tuple(heads)
        node.free |= ((1 << job.cpu) - 1) << slot
        node.free_count += job.cpu
        if job.gpus and node.gpus is not None:
            node.gpus.release(slot)
            node.gpus_free = node.gpus.whole_count
        kind.insert(node)
        self._free_slots += job.cpu
        job.count -= 1
        held = job.held[kind]
        begun = held[node.number] & ~(1 << slot)
        if begun:
            held[node.number] = begun
        else:
            del held[node.number]
            if not held:
                del job.held[kind]
        if job.demand.spec.max_nodes:
            job.nodes[node] -= 1
            if not job.nodes[node]:
                del job.nodes[node]

    # ------------------------------------------------------------ classes

    def _new_class(self, key: tuple[object, ...], view: NodeView) -> NodeClass:
        kind = self._classes[key] = NodeClass(key, view, *key[-2:])  # type: ignore[arg-type]
        samples = {job.need: job for job in self._jobs.values()}
        self._fitting = {need: classes for need, classes in self._fitting.items() if need in samples}
        for need, classes in self._fitting.items():
            if kind.fits(samples[need]):
                classes.append(kind)
        return kind

    def _fits(self, job: PlannedJob) -> list[NodeClass]:
        """Classes with nodes that could run the job."""
        classes = self._fitting.get(job.need)
        if classes is None:
            classes = self._fitting[job.need] = [kind for kind in self._classes.values() if kind.fits(job)]
        return classes
