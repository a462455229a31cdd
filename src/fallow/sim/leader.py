"""The matching's leader: the real planner over what nodes and owners say, made anew when its coordinator is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fallow.core.matching import SERVED_HALF_LIFE_S, JobDemand, NodeView, Plan, Planner
from fallow.model.ids import JobId, SlotKey
from fallow.sim.coordinator import Coordinator
from fallow.sim.node import Node, Slot
from fallow.sim.truth import Broken, JobRow

if TYPE_CHECKING:
    from fallow.sim.world import World

PLAN_EVERY_S = 2.0
"""At most; and only where something changed."""
ASSIGN_AGAIN_S = 2.0
REPORTED_S = 1.0
"""A new leader hears within one heartbeat what every node is assigned to."""


class Leader:
    def __init__(self, world: World, coordinator: Coordinator) -> None:
        self._world = world
        self.coordinator = coordinator
        self.epoch = 1
        self.planner = Planner()
        self.plans = 0
        self.moves = 0
        self.plan_s = 0.0
        self._wanted: dict[SlotKey, JobRow | None] = {}
        self._demands: dict[JobId, JobDemand] = {}
        self._live: list[tuple[int, JobRow]] = []
        """Jobs that have not ended, as of the last plan, in the order of their arrival."""
        self._is_scheduled = False
        self._ran_at = -1e9

    def expect(self, rows: Sequence[JobRow]) -> None:
        """All jobs of this run, in the order of their arrival."""
        self._live = list(enumerate(rows))

    def kick(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._world.clock.at(self._ran_at + PLAN_EVERY_S, self._plan, self.epoch)

    def elect(self, coordinator: Coordinator) -> None:
        """Another coordinator leads: under the next epoch, and with nothing but what the nodes report."""
        self.epoch += 1
        self.coordinator = coordinator
        self._is_scheduled = True
        self._world.clock.after(REPORTED_S, self._rebuild, self.epoch)

    def _rebuild(self, epoch: int) -> None:
        if epoch != self.epoch:
            return
        self.planner = Planner()
        self._wanted.clear()
        self._update_demands()
        self.planner.put_nodes([self._view(node) for node in self._world.nodes if node.is_known])
        self._plan(epoch)

    # ------------------------------------------------------------ nodes

    def node_known(self, node: Node) -> None:
        self.planner.put_node(self._view(node))
        self.kick()

    def _view(self, node: Node) -> NodeView:
        """What the node reports that its slots have; so much is wanted of it now."""
        assigned: dict[int, JobId | None] = {}
        for number, slot in enumerate(node.slots):
            self._wanted[slot.key] = slot.job
            if slot.job is not None:
                assigned[number] = slot.job.job_id
        return NodeView(node.spec, assigned)

    def node_gone(self, node: Node) -> None:
        self.planner.remove_node(node.node_id)
        for slot in node.slots:
            self._wanted.pop(slot.key, None)
        self.kick()

    # ------------------------------------------------------------ plans

    def _update_demands(self) -> None:
        world = self._world
        elapsed = min(world.clock.now - self._ran_at, SERVED_HALF_LIFE_S)
        keep = 0.5 ** (elapsed / SERVED_HALF_LIFE_S)
        ended = False
        for order, row in self._live:
            if row.arrived_at < 0:
                break  # they arrive in that order
            old = self._demands.get(row.job_id)
            if row.ended_at >= 0:
                ended = True
                if old is not None:
                    del self._demands[row.job_id]
                    self.planner.remove_job(row.job_id)
                continue
            owned = world.owner_of(row)
            demand = old or JobDemand(row.spec, 0, order=order)
            if owned is not None:
                progress = owned.progress
                demand.want = progress.demand
                demand.served = demand.served * keep + progress.busy_slots * elapsed
            self._demands[row.job_id] = demand
            self.planner.put_job(demand)
        if ended:
            self._live = [(order, row) for order, row in self._live if row.ended_at < 0]

    def _plan(self, epoch: int) -> None:
        world = self._world
        if epoch != self.epoch:
            return
        self._is_scheduled = False
        if not self.coordinator.can_serve:
            return  # the next leader plans
        started = time.perf_counter()  # a process's own time costs a system call, which may take as long as the plan
        self._update_demands()
        self._ran_at = world.clock.now
        plan = self.planner.plan()
        self.plan_s += time.perf_counter() - started
        self.plans += 1
        moved = plan.changes
        self.moves += len(moved)
        for row in world.open_rows():
            owned = world.owner_of(row)
            if owned is not None:
                owned.progress.slots = max(1, plan.shares.get(row.job_id, 0))
        for key, job_id in moved.items():
            row_or_none = world.truth.jobs[job_id] if job_id is not None else None
            self._wanted[key] = row_or_none
            self._send(world.slot_of(key), row_or_none)
        if moved:
            world.clock.note("plan", len(moved), sorted(plan.shares.items()))
        self._check_fair(plan)

    def _check_fair(self, plan: Plan) -> None:
        """All nodes are alike here: no job that wants more has two slots less than another."""
        least = min(
            (plan.shares.get(j, 0) for j, d in self._demands.items() if d.want > plan.shares.get(j, 0)), default=None
        )
        if least is None:
            return
        for job_id, share in plan.shares.items():
            if share >= least + 2:
                raise Broken(f"{job_id} has {share} slots, and a job that wants more has {least}")

    def _send(self, slot: Slot, row: JobRow | None) -> None:
        agents = self._world.agents
        if not self._world.to_node(slot.node, agents.assign, slot, row, self.epoch, slot.node.session):
            self._world.clock.after(ASSIGN_AGAIN_S, self._send_again, slot, self.epoch)

    def _send_again(self, slot: Slot, epoch: int) -> None:
        """The node's beat shows another job than was assigned."""
        if epoch == self.epoch and slot.node.is_known and slot.key in self._wanted:
            wanted = self._wanted[slot.key]
            if wanted is not slot.job and (wanted is None or wanted.is_open):
                self._send(slot, wanted)
