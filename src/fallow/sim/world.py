"""A whole pool in virtual time: what connects agents, coordinators, the leader and the store, and the run itself."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from fallow.model.ids import ClientId, Digest, JobId, NodeId, SlotKey, Token
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.sim.agents import PULL_AGAIN_S, Agents
from fallow.sim.availability import load_availability
from fallow.sim.clock import Clock
from fallow.sim.coordinator import BUFFER_LIMIT, Coordinator, Owned
from fallow.sim.faults import ZONES, Faults
from fallow.sim.leader import Leader
from fallow.sim.network import Network
from fallow.sim.node import Node, Slot
from fallow.sim.options import Options
from fallow.sim.summary import Sample, Summary
from fallow.sim.truth import Broken, JobRow, Truth
from fallow.wire.messages import NODE_LOST_AFTER_S

ARRIVALS_SHARE = 0.8
"""Jobs arrive within this share of the time."""
SAMPLES = 200
COHORTS = 32
"""A new owner hears within a second from every node that has slots for its job, and within PULL_AGAIN_S from every slot
that waits: in so many messages each, not one a node."""
JOBS_DIFFER = 3.0
JOBS_DIFFER_MEAN = (JOBS_DIFFER - 1 / JOBS_DIFFER) / (2 * math.log(JOBS_DIFFER))
"""Of jobs with equal work, whose lengths of task differ so: makes the mean over all tasks what was asked for."""


class World:
    """`run` it once. Raises Broken where an invariant does not hold."""

    def __init__(self, options: Options) -> None:
        options.check()
        self.options = options
        self.chance = Random(options.seed)
        self.clock = Clock()
        self.network = Network(self.clock, self.chance, options.latency_s, options.loss, options.duplicate)
        self.truth = Truth()
        self.availability = load_availability(options.trace).faster(options.churn)
        self.agents = Agents(self)
        self.nodes = [self._make_node(number) for number in range(options.nodes)]
        self.slot_count = options.nodes * options.slots
        self.coordinators = [Coordinator(number) for number in range(options.coordinators)]
        self.leader = Leader(self, self.coordinators[0])
        self.faults = Faults(self, options.fault_rate)
        self.rows = self._make_jobs()
        self.leader.expect(self.rows)
        self.grants = 0
        self.take_overs = 0
        self.lost_nodes = 0
        self.retried = 0
        self._slots = {slot.key: slot for node in self.nodes for slot in node.slots}
        self._by_id = {node.node_id: node for node in self.nodes}
        self._is_healed = False
        self._samples: list[Sample] = []
        self._up_slots = 0
        self._open: list[JobRow] = []

    def _make_node(self, number: int) -> Node:
        speed = min(4.0, max(0.25, math.exp(self.chance.gauss(0.0, 0.4))))
        return Node(number, self.options.slots, speed, number % ZONES)

    def _make_jobs(self) -> list[JobRow]:
        options = self.options
        work_s = sum(node.speed * len(node.slots) for node in self.nodes) * options.hours * 3600
        work_s *= self.availability.share * options.load / options.jobs
        rows = []
        for number in range(options.jobs):
            task_s = options.task_s * JOBS_DIFFER_MEAN * JOBS_DIFFER ** self.chance.uniform(-1, 1)
            name = f"job-{number:06d}"
            spec = JobSpec(JobId(name), name, JobKind.MAP, ClientId("client"), Blob(Digest(""), 0, b""))
            row = JobRow(spec, max(1, round(work_s / task_s)), task_s, options.poison, bit=1 << number)
            self.truth.jobs[row.job_id] = row
            rows.append(row)
        return rows

    # ------------------------------------------------------------ who is who

    def slot_of(self, key: SlotKey) -> Slot:
        return self._slots[key]

    def node_of(self, node_id: NodeId) -> Node:
        return self._by_id[node_id]

    def owner_of(self, row: JobRow) -> Owned | None:
        """The owner that the store knows, if it has the job in memory."""
        for owned in row.owners:
            if owned.epoch == row.epoch:
                return owned
        return None

    def open_rows(self) -> Iterator[JobRow]:
        return (row for row in self.rows if row.is_open)

    def rows_of(self, node: Node) -> list[JobRow]:
        """Open jobs that may remember something of the node, in the order of their arrival."""
        bits = node.rows
        return [row for row in self._open if row.bit & bits]

    # ------------------------------------------------------------ messages

    def to_owners(self, node: Node, row: JobRow, kind: str, *args: Any) -> bool:
        """To every coordinator that takes itself for the owner. False: it does not reach the one that is."""
        reached = False
        for owned in row.owners:
            if self.network.post(node.zone, self.deliver, (owned, kind, args)) and owned.epoch == row.epoch:
                reached = True
        return reached

    def deliver(self, owned: Owned, kind: str, args: tuple[Any, ...]) -> None:
        coordinator = owned.coordinator
        if owned.is_dead:
            self.undelivered(owned, kind, args)
        elif coordinator.is_stopped:
            if len(coordinator.buffer) < BUFFER_LIMIT:
                coordinator.buffer.append((owned, kind, args))
            self.undelivered(owned, kind, args)  # the answer is late: the sender's timer does not wait for it
        else:
            getattr(owned, kind)(*args)

    def undelivered(self, owned: Owned, kind: str, args: tuple[Any, ...]) -> None:
        if kind == "hand_in":
            self.agents.lost_hand_in(args[0])
        elif owned.epoch != owned.row.epoch:
            pass  # the next owner was sent the pull too, or has asked for it (take_over)
        elif kind == "pull":
            self.agents.lost_pull(args[0], args[1])
        elif kind == "pulls":
            for slot, seq, _ in args[0]:
                self.agents.lost_pull(slot, seq)
        # A beat need not be repeated: whoever takes the job over is sent one.

    def to_node(self, node: Node, what: Callable[..., None], *args: Any) -> bool:
        return self.network.post(node.zone, what, args)

    def revoke(self, node: Node, row: JobRow, epoch: int, tokens: Sequence[Token]) -> None:
        """Repeated until it arrives, as the answers to beats are."""
        if not self.to_node(node, self.agents.revoke, node, row, epoch, tokens, node.session):
            self.clock.after(1.0, self.revoke, node, row, epoch, tokens)

    def unsubscribe(self, owned: Owned) -> None:
        owners = owned.row.owners
        if owned in owners:
            owners.remove(owned)

    # ------------------------------------------------------------ presence

    def hello(self, node: Node) -> None:
        """The first beat of a session, or after a cut."""
        node.hellos += 1
        self.clock.after(self.options.latency_s, self._heard, node, node.session)

    def _heard(self, node: Node, session: int) -> None:
        if node.session != session or not node.is_up:
            return
        if node.zone in self.network.cut:
            return  # the end of the cut says hello again
        if not node.is_known:
            node.is_known = True
            self._up_slots += len(node.slots)
            self.leader.node_known(node)
        for row in self.rows_of(node):
            self.agents.beat(node, row, session)

    def fall_silent(self, node: Node) -> None:
        """What its last beats said, the owners have heard (Agents.last_beat)."""
        self.clock.after(NODE_LOST_AFTER_S, self._silent_for_long, node, node.hellos)

    def _silent_for_long(self, node: Node, hellos: int) -> None:
        if node.hellos == hellos:
            self.declare_lost(node, f"silent for {NODE_LOST_AFTER_S:g} s")

    def say_bye(self, node: Node) -> None:
        if not self.network.send(node.zone, self.declare_lost, node, "it left the pool", node.hellos):
            self.fall_silent(node)

    def declare_lost(self, node: Node, reason: str, hellos: int | None = None) -> None:
        if not node.is_known or (hellos is not None and hellos != node.hellos):
            return
        node.is_known = False
        self.lost_nodes += 1
        self._up_slots -= len(node.slots)
        self.clock.note("lost", node.node_id, reason)
        self.leader.node_gone(node)
        rows = self.rows_of(node)
        if not node.is_up:
            node.rows = 0
        for row in rows:
            for owned in list(row.owners):
                self.deliver(owned, "node_lost", (node, reason))

    # ------------------------------------------------------------ coordinators

    def session_over(self, coordinator: Coordinator, session: int) -> None:
        if coordinator.session != session:
            return
        for row in self.open_rows():
            if row.owner == coordinator.number:
                self.take_over(row)
        if self.leader.coordinator is coordinator:
            self._elect()

    def _elect(self) -> None:
        able = [c for c in self.coordinators if c.can_serve and c.session_ends == math.inf]
        if able:
            self.leader.elect(self.chance.choice(able))

    def coordinator_back(self, coordinator: Coordinator) -> None:
        """It serves under a new session: it leads if nobody does, and takes up what nobody owns."""
        leads = self.leader.coordinator
        if leads is coordinator or not leads.can_serve:
            self._elect()
        for row in self.open_rows():
            if self.owner_of(row) is None and (
                row.owner in (-1, coordinator.number) or self.coordinators[row.owner].session_ends <= self.clock.now
            ):
                self.take_over(row)

    def take_over(self, row: JobRow) -> None:
        """An able coordinator becomes the job's owner; if there is none, the first that comes back will."""
        able = [c for c in self.coordinators if c.can_serve and c.session_ends == math.inf]
        if not able or not row.is_open:
            return
        coordinator = min(able, key=lambda c: (len(c.owned), c.number))
        is_first = row.epoch == 0
        owned = Owned(self, coordinator, row)
        coordinator.owned[row] = owned
        row.owners.append(owned)
        self.clock.note("owner", row.job_id, coordinator.number, owned.epoch)
        if is_first:
            return
        self.take_overs += 1
        owned.progress.finish_if_done()
        chance = self.chance.random
        told: dict[Node, int] = {}
        pulls: list[list[tuple[Slot, int, int]]] = [[] for _ in range(COHORTS)]
        for slot in row.slots:
            told[slot.node] = slot.node.session
            if slot.pull_open and slot.job is row:
                pulls[int(COHORTS * chance())].append((slot, slot.pull_seq, slot.node.session))
        for at, pulling in enumerate(pulls):
            if pulling:
                self.clock.after(PULL_AGAIN_S * (at + chance()) / COHORTS, self.agents.pulls_again, row, pulling)
        cohorts: list[list[tuple[Node, int]]] = [[] for _ in range(COHORTS)]
        for named in told.items():
            cohorts[int(COHORTS * chance())].append(named)
        for at, cohort in enumerate(cohorts):
            if cohort:
                self.clock.after((at + chance()) / COHORTS, self.agents.beats, row, cohort)

    # ------------------------------------------------------------ jobs

    def _arrive(self, row: JobRow) -> None:
        row.arrived_at = self.clock.now
        row.epochs = array("i", bytes(4 * len(self.nodes)))
        self._open.append(row)
        self.truth.open_count += 1
        self.take_over(row)
        self.leader.kick()

    def job_ended(self, row: JobRow) -> None:
        self.clock.note("ended", row.job_id, len(row.failed))
        for owned in list(row.owners):
            if owned.epoch == row.epoch:
                self.retried += owned.progress.retried
            owned.die()
        for node in {slot.node: None for slot in row.slots}:
            self.revoke(node, row, row.epoch, ())
        self._open.remove(row)
        self.leader.kick()
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self._is_healed and not self.truth.open_count and all(row.ended_at >= 0 for row in self.rows):
            self.clock.stopped = True

    # ------------------------------------------------------------ the run

    def run(self, progress: Callable[[float], None] | None = None) -> Summary:
        """Faults until the hours are over, then health until every job has ended. `progress` is told the virtual time
        now and then."""
        started, cpu_started = time.perf_counter(), time.process_time()
        options = self.options
        until = options.hours * 3600
        for at, row in enumerate(self.rows):
            self.clock.at(until * ARRIVALS_SHARE * at / len(self.rows), self._arrive, row)
        for node in self.nodes:
            if self.chance.random() < self.availability.share:
                self.clock.after(self.chance.random(), self._come, node)
            else:
                self.clock.after(self.availability.down_s(self.chance), self._come, node)
        self.faults.start()
        for at in range(1, SAMPLES + 1):
            self.clock.at(until * at / SAMPLES, self._sample, progress)
        self.clock.run(until)
        useful_s, up_s = self.agents.useful_s + self._running_s(), self._up_s_so_far()
        self._heal()
        self.clock.run(until + options.drain_hours * 3600)
        stuck = [row for row in self.rows if row.ended_at < 0]
        if stuck:
            owned = self.owner_of(stuck[0])
            raise Broken(
                f"{len(stuck)} jobs have not ended {options.drain_hours:g} h after everything was healed; "
                f"{owned.progress.story() if owned else stuck[0].job_id}"
            )
        self._audit()
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        return Summary.of(self, self._samples, useful_s / up_s if up_s else 0.0, wall_s, cpu_s)

    def _come(self, node: Node) -> None:
        self.agents.come(node)
        if not self._is_healed:
            self.clock.after(self.availability.up_s(self.chance), self._go, node)

    def _go(self, node: Node) -> None:
        if self._is_healed:
            return
        self.agents.go(node, silently=self.chance.random() < self.options.silent_share)
        self.clock.after(self.availability.down_s(self.chance), self._come, node)

    def _heal(self) -> None:
        self._is_healed = True
        self.clock.note("healed")
        self.faults.heal()
        for node in self.nodes:
            self.agents.come(node)
        self._stop_if_done()

    def _up_s_so_far(self) -> float:
        now = self.clock.now
        running = sum((now - node.up_since) * len(node.slots) for node in self.nodes if node.is_up)
        return self.agents.up_s + running

    def _running_s(self) -> float:
        """What leases that run now have run for: taken for useful."""
        slots = (slot for node in self.nodes for slot in node.slots)
        return sum(self.clock.now - slot.running.began_at for slot in slots if slot.running is not None)

    def _sample(self, progress: Callable[[float], None] | None) -> None:
        busy = sum(1 for row in self.open_rows() for slot in row.slots if slot.running is not None)
        self._samples.append(Sample(self.clock.now, self._up_slots, busy, self.truth.open_count, self.truth.recorded))
        if progress is not None:
            progress(self.clock.now)

    def _audit(self) -> None:
        """What every run must come to, whatever happened in it."""
        for row in self.rows:
            if row.missing:
                raise Broken(f"{row.job_id}: {row.missing} of {row.total} tasks were never recorded")
            for start, stop in row.failed:
                for index in range(start, stop):
                    if not row.kills(index) and self.options.fault_rate == 0 and self.options.silent_share == 0:
                        raise Broken(f"{row.job_id}: task {index} failed, and nothing was wrong with it")
            if row.poison:
                for index in range(row.poison // 2, row.total, row.poison):
                    if index not in row.failed:
                        raise Broken(f"{row.job_id}: task {index} kills every worker, and counts as done")
