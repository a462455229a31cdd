"""The matcher's memory: told of nodes and jobs one by one, it plans in the time of what changed.

A plan goes in steps, until none of them moves anything:

1. Shares: max-min fair numbers of groups of slots, each job's bounded by what it wants and by what the pool has for it.
2. A job below its share takes free slots, then slots of jobs that are above theirs, those that want nothing first.
3. A job that wants more takes from jobs that have at least two groups more than it, where it fits: so no job with
   less envies a job with more, though each fits a part of the pool only. One that has its share takes only what is
   above the other's.
4. What is free goes to those that want more than their share.

Steps 2 and 3 end: each move lowers the distance from the shares, or leaves it and lowers the sum of squares.
Rejected: maximum flow over (kind of demand, class of nodes) is exact for chains of envy, and moves warm slots that need
not move.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import islice

from fallow.core.books import Books
from fallow.core.classes import NOTHING, Need, NodeClass, PlannedJob, PlannedNode, allowed, slots_of
from fallow.core.demand import Moves, Plan
from fallow.core.shares import fair_shares
from fallow.model.ids import NodeId

SPREAD_NODES = 8
"""A job goes to so many nodes where it can, so that one lost node hurts little; beyond, it fills whole nodes, so that
few nodes need its environment and data."""
ROUNDS_LIMIT = 16
JOB_ROUNDS_LIMIT = 1_000
"""Jobs times rounds of one plan, from the second round on: what is left then moves with the next plan."""
TRIES_LIMIT = 50
"""Places of one class looked at for one job that cannot go just anywhere (adjacent slots, GPUs, refusals): in a large
pool it may have to wait for a better one; what is at most asked of a plan is bounded."""
LEVEL_TRIES_LIMIT = 1_000
"""The same for all jobs together in one round of step 3."""


class Planner(Books):
    """Told of jobs and nodes by the books' events; `plan` moves slots and says which."""

    def __init__(self) -> None:
        super().__init__()
        self._tries = 0
        self._level_tries = 0

    # ------------------------------------------------------------ the plan

    def plan(self) -> Plan:
        """Move slots until every job has what is fair, and say what changed since the last plan."""
        jobs = sorted(self._jobs.values(), key=lambda job: (job.demand.served, job.demand.order))
        self._set_shares(jobs)
        for _ in range(min(ROUNDS_LIMIT, 1 + JOB_ROUNDS_LIMIT // max(1, len(jobs)))):
            moved = self._fill(jobs)
            moved += self._level(jobs)
            moved += self._hand_out_rest(jobs)
            if not moved:
                break
        out = Plan(self._moves())
        for job in self._jobs.values():
            if job.count:
                out.shares[job.job_id] = job.count
        return out

    def _moves(self) -> list[tuple[NodeId, Moves]]:
        """What changed since this was asked last."""
        moves: list[tuple[NodeId, Moves]] = []
        known: dict[tuple[PlannedJob | None, ...], Moves] = {}
        """What nodes that had nothing have now, by their heads, which many share."""
        touched = self._touched
        # Where most of a large pool changed, in the order in which the nodes lie in memory.
        nodes = touched if 2 * len(touched) < len(self._nodes) else self._by_number
        for node in nodes:
            if node is None or node.before is None:
                continue
            before, heads = node.before, node.heads
            node.before = None
            if before is NOTHING:
                moved = known.get(heads)
                if moved is None:
                    moved = known[heads] = tuple((i, job.job_id) for i, job in enumerate(heads) if job is not None)
            else:
                moved = tuple(
                    (slot, None if job is None else job.job_id)
                    for slot, (job, job_id) in enumerate(zip(heads, before, strict=True))
                    if job_id != (None if job is None else job.job_id)
                )
            if moved:
                moves.append((node.node_id, moved))
        self._touched = []
        return moves

    def _set_shares(self, jobs: list[PlannedJob]) -> None:
        room: dict[Need, int] = {}
        claims = []
        for job in jobs:
            want = max(0, job.demand.want)
            if want:
                if job.need not in room:
                    room[job.need] = sum(kind.node_count * kind.groups_per_node(job) for kind in self._fits(job))
                want = min(want, room[job.need])
                most = job.demand.spec.max_nodes
                if most:
                    want = min(want, most * max((kind.slots // job.cpu for kind in self._fits(job)), default=0))
            claims.append((want, job.cpu))
        for job, share in zip(jobs, fair_shares(claims, self._slots), strict=True):
            job.share = share

    def _fill(self, jobs: list[PlannedJob]) -> int:
        """Step 2. Returns how many groups moved."""
        moved = 0
        surplus: dict[NodeClass, list[PlannedJob]] | None = None
        fruitless: set[tuple[Need, NodeClass]] = set()
        lacking = [job for job in jobs if job.count < job.share]
        # Those that are hard to place choose first; how many they get is settled already.
        lacking.sort(key=lambda job: (-job.gpus, -job.cpu))
        for job in lacking:
            missing = job.share - job.count
            taken = self._take_free(job, missing)
            if taken < missing:
                if surplus is None:
                    surplus = self._surplus(jobs)
                taken += self._take_surplus(job, missing - taken, surplus, fruitless)
            moved += taken
        return moved

    def _surplus(self, jobs: list[PlannedJob]) -> dict[NodeClass, list[PlannedJob]]:
        """By class, who has more than its share; whom to take from first comes last."""
        found: dict[NodeClass, list[PlannedJob]] = {}
        above = [job for job in jobs if job.count > job.share]
        for job in sorted(above, key=lambda job: (job.demand.want <= 0, -job.demand.order)):
            for kind, slots in job.held.items():
                if slots:
                    found.setdefault(kind, []).append(job)
        return found

    def _level(self, jobs: list[PlannedJob]) -> int:
        """Step 3. Returns how many groups moved."""
        lacking = [(job.count, at, job) for at, job in enumerate(jobs) if job.count < job.demand.want]
        most = max((job.count for job in jobs), default=0)
        if not lacking or most < min(lacking)[0] + 2:
            return 0
        moved = 0
        heapq.heapify(lacking)
        rich: dict[NodeClass, list[tuple[int, int, PlannedJob]]] = {}
        for at, job in enumerate(jobs):
            if job.count >= 2:
                for kind, slots in job.held.items():
                    if slots:
                        rich.setdefault(kind, []).append((-job.count, at, job))
        for heap in rich.values():
            heapq.heapify(heap)
        hopeless: dict[Need, int] = {}
        self._level_tries = LEVEL_TRIES_LIMIT
        while lacking and self._level_tries > 0:
            count, at, job = heapq.heappop(lacking)
            if job.is_plain and count >= hopeless.get(job.need, 1 << 62):
                continue
            if self._take_from_richest(job, rich):
                moved += 1
                if job.count < job.demand.want:
                    heapq.heappush(lacking, (job.count, at, job))
            elif job.is_plain:
                hopeless[job.need] = count
        return moved

    def _take_from_richest(self, job: PlannedJob, rich: dict[NodeClass, list[tuple[int, int, PlannedJob]]]) -> bool:
        for kind in self._fits(job):
            heap = rich.get(kind)
            passed = []
            self._tries = TRIES_LIMIT
            found = False
            while heap:
                negative, at, victim = heap[0]
                if victim.count != -negative or not victim.held.get(kind):
                    heapq.heappop(heap)
                    if victim.count >= 2 and victim.held.get(kind):
                        heapq.heappush(heap, (-victim.count, at, victim))
                    continue
                if victim.count < job.count + 2 or self._tries <= 0:
                    break
                keep = job.count + 1 if job.count < job.share else max(job.count + 1, victim.share)
                if victim is not job and self._take_over(job, kind, [victim], 1, keep):
                    found = True
                    break
                passed.append(heapq.heappop(heap))
            self._level_tries -= TRIES_LIMIT - self._tries
            for entry in passed:
                heapq.heappush(heap, entry)  # type: ignore[arg-type]
            if found:
                return True
        return False

    def _hand_out_rest(self, jobs: list[PlannedJob]) -> int:
        """Step 4. Returns how many groups moved."""
        moved = 0
        full: set[Need] = set()
        wanting = [job for job in jobs if job.demand.want > job.count]
        while self._free_slots > 0 and wanting:
            wanting = [job for job in wanting if not (job.is_plain and job.need in full)]
            wanting.sort(key=lambda job: job.count)
            extra = fair_shares([(job.demand.want - job.count, job.cpu) for job in wanting], self._free_slots)
            still = []
            if not any(extra):
                break
            for job, most in zip(wanting, extra, strict=True):
                if job.is_plain and job.need in full:
                    continue
                if not most:
                    still.append(job)
                    continue
                taken = self._take_free(job, most)
                moved += taken
                if taken < most and job.is_plain:
                    full.add(job.need)
                elif taken and job.demand.want > job.count:
                    still.append(job)
            wanting = still
        return moved

    # ------------------------------------------------------------ taking slots

    def _take_free(self, job: PlannedJob, count: int) -> int:
        """Up to `count` groups of free slots; how many were had."""
        if job.is_plain and self._none_free.get(job.need) == self._releases:
            return 0
        taken = 0
        passed: set[NodeClass] = set()
        while taken < count:
            best: tuple[bool, int, int, NodeClass, dict[PlannedNode, None]] | None = None
            for kind in self._fits(job):
                if (
                    not kind.free_nodes
                    or kind in passed
                    or (best is not None and kind.device_count and not job.gpus and best[0])
                ):
                    continue
                found = kind.fullest(job.whole_gpus, job.cpu)
                if found is not None:
                    # Jobs that need no GPU leave the nodes that have some to others while they can.
                    plain = bool(job.gpus) or not kind.device_count
                    # Of those, the fastest; of those, the emptiest.
                    rank = plain, kind.speed(job), found[0]
                    if best is None or rank > best[:3]:
                        best = (*rank, kind, found[1])
            if best is None:
                if job.is_plain:
                    self._none_free[job.need] = self._releases
                return taken
            _, _, _, kind, bucket = best
            got = self._take_bucket(job, kind, bucket, count - taken)
            if not got:
                got = self._take_anywhere(job, kind, count - taken)
                if not got:
                    passed.add(kind)
            taken += got
        return taken

    def _take_bucket(self, job: PlannedJob, kind: NodeClass, bucket: dict[PlannedNode, None], count: int) -> int:
        """From the nodes of one bucket, one visit each."""
        always = kind.always(job)
        each = max(1, -(-count // SPREAD_NODES))
        if job.is_plain and bucket is kind.buckets[-1][-1]:
            nodes = bucket if always else (node for node in bucket if allowed(job, node))
            return self._take_fresh(job, kind, nodes, each, count)
        taken = 0
        chosen = []
        for node in bucket:
            if taken >= count:
                break
            if not always and not allowed(job, node):
                continue
            groups = node.free_groups(job.cpu)
            most = min(each, count - taken)
            if job.gpus:
                most = node.gpu_room(job, min(most, len(groups)))
            if len(groups) > most:
                groups = groups[:most]
            if groups:
                chosen.append((node, groups))
                taken += len(groups)
                if job.demand.spec.max_nodes:
                    break  # whether the next node is allowed depends on this one
        if chosen:
            self._assign_all(job, kind, chosen)
        return taken

    def _take_fresh(self, job: PlannedJob, kind: NodeClass, nodes: Iterable[PlannedNode], each: int, count: int) -> int:
        """`_take_bucket` where every slot of every node is free, so that all nodes are alike."""
        each = min(each, kind.groups_per_node(job))
        if not each:
            return 0
        chosen = list(islice(nodes, -(-count // each)))
        taken = min(count, each * len(chosen))
        rest = taken % each
        self._assign_fresh(job, kind, chosen[:-1] if rest else chosen, each)
        if rest:
            self._assign_fresh(job, kind, chosen[-1:], rest)
        return taken

    def _take_anywhere(self, job: PlannedJob, kind: NodeClass, count: int) -> int:
        """The fullest bucket had nothing for it (fragments, refusals, max_nodes): all others, one visit each."""
        taken = 0
        for row in kind.buckets[job.whole_gpus :]:
            for free in range(kind.slots, job.cpu - 1, -1):
                while row[free] and taken < count:
                    got = self._take_bucket(job, kind, row[free], count - taken)
                    taken += got
                    if not got:
                        break
        return taken

    def _take_surplus(
        self,
        job: PlannedJob,
        count: int,
        surplus: dict[NodeClass, list[PlannedJob]],
        fruitless: set[tuple[Need, NodeClass]],
    ) -> int:
        taken = 0
        for kind in self._fits(job):
            stack = surplus.get(kind)
            if not stack or (job.is_plain and (job.need, kind) in fruitless):
                continue
            self._tries = TRIES_LIMIT
            taken += self._take_over(job, kind, stack, count - taken)
            if taken >= count:
                break
            if job.is_plain:
                fruitless.add((job.need, kind))
        return taken

    def _take_over(
        self, job: PlannedJob, kind: NodeClass, victims: list[PlannedJob], count: int, keep: int | None = None
    ) -> int:
        """Up to `count` groups from the last of `victims` on, down to their shares (or to `keep`); those that have no
        more to give are taken off the list."""
        taken = 0
        at = len(victims) - 1
        while at >= 0 and taken < count and self._tries > 0:
            victim = victims[at]
            least = victim.share if keep is None else keep
            slots = victim.held.get(kind)
            if victim.count <= least or not slots:
                if keep is None:
                    del victims[at]
                at -= 1
                continue
            place = self._place_over(job, kind, slots, keep)
            if place is None:
                at -= 1
                continue
            node, slot, ousted = place
            for head, owner in ousted:
                self._release(owner, node, head)
            self._assign_all(job, kind, [(node, (slot,))])
            taken += 1
            self._tries += 1
            if victim.cpu > job.cpu and taken < count:
                taken += self._take_free(job, count - taken)
        return taken

    def _place_over(
        self, job: PlannedJob, kind: NodeClass, held: dict[int, int], keep: int | None
    ) -> tuple[PlannedNode, int, list[tuple[int, PlannedJob]]] | None:
        """(node, slot, heads that must go): where the job could replace the youngest of these groups."""
        always = kind.always(job)
        for number in reversed(held):
            node = self._node(number)
            for head in reversed(slots_of(held[number])):
                if self._tries <= 0:
                    return None
                self._tries -= 1
                victim = node.heads[head]
                assert victim is not None
                if node.gpus_free + victim.gpus < job.whole_gpus or not (always or allowed(job, node)):
                    continue
                if victim.cpu >= job.cpu and not job.gpus:
                    return node, head, [(head, victim)]  # whoever calls knows that this victim has one to spare
                first = head if victim.cpu >= job.cpu else max(0, head - job.cpu + 1)
                for start in range(first, head + 1):
                    ousted = self._ousted(job, node, start, keep)
                    if ousted is not None:
                        return node, start, ousted
        return None

    def _ousted(
        self, job: PlannedJob, node: PlannedNode, start: int, keep: int | None
    ) -> list[tuple[int, PlannedJob]] | None:
        """Heads that must go so that the job fits at `start`; None: one of them may not go."""
        stop = start + job.cpu
        if stop > len(node.heads):
            return None
        heads: list[tuple[int, PlannedJob]] = []
        for head, other in enumerate(node.heads[:stop]):
            if other is None or head + other.cpu <= start:
                continue
            left = other.count - 1
            for _, earlier in heads:
                if earlier is other:
                    left -= 1
            if other is job or left < (other.share if keep is None else keep):
                return None
            heads.append((head, other))
        return heads if node.gpu_room(job, 1, [head for head, _ in heads]) else None
