"""What came of a run, for people and for programs."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fallow.sim.world import World


@dataclass(frozen=True, slots=True)
class Sample:
    """The pool at one time. Slots of live nodes, slots that run something, jobs that are open, tasks recorded."""

    at_s: float
    up_slots: int
    busy_slots: int
    open_jobs: int
    recorded: int


@dataclass(frozen=True, slots=True)
class Summary:
    nodes: int
    slots: int
    jobs: int
    seed: int
    virtual_hours: float
    tasks: int
    failed: int
    utilisation: float
    """Useful run time over time of live slots, while work arrived."""
    wasted_share: float
    """Run time that came to nothing, of all run time."""
    grants: int
    releases: int
    """Leases beyond one for each that was needed: those given back, dropped, doubled or lost."""
    retried: int
    lost_nodes: int
    take_overs: int
    stale_leases: int
    fenced_commits: int
    plans: int
    moves: int
    mean_plan_ms: float
    messages: int
    lost_messages: int
    events: int
    faults: dict[str, int]
    wall_s: float
    cpu_s: float
    peak_memory_mb: float
    digest: str
    samples: Sequence[Sample]

    @classmethod
    def of(cls, world: World, samples: Sequence[Sample], utilisation: float, wall_s: float, cpu_s: float) -> Summary:
        agents, leader = world.agents, world.leader
        run_s = agents.useful_s + agents.wasted_s
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
        return cls(
            nodes=world.options.nodes,
            slots=world.slot_count,
            jobs=len(world.rows),
            seed=world.options.seed,
            virtual_hours=world.clock.now / 3600,
            tasks=world.truth.recorded,
            failed=sum(len(row.failed) for row in world.rows),
            utilisation=utilisation,
            wasted_share=agents.wasted_s / run_s if run_s else 0.0,
            grants=world.grants,
            releases=world.grants - agents.begun,
            retried=world.retried,
            lost_nodes=world.lost_nodes,
            take_overs=world.take_overs,
            stale_leases=agents.stale_leases,
            fenced_commits=world.truth.fenced,
            plans=leader.plans,
            moves=leader.moves,
            mean_plan_ms=leader.plan_s / leader.plans * 1e3 if leader.plans else 0.0,
            messages=world.network.sent,
            lost_messages=world.network.lost,
            events=world.clock.events,
            faults=dict(sorted(world.faults.counts.items())),
            wall_s=wall_s,
            cpu_s=cpu_s,
            peak_memory_mb=peak,
            digest=world.clock.digest,
            samples=samples,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        faults = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in self.faults.items()) or "none"
        return "\n".join(
            (
                f"{self.nodes:,} nodes, {self.slots:,} slots, {self.jobs} jobs, seed {self.seed}: "
                f"{self.virtual_hours:.1f} virtual hours in {self.wall_s:.1f} s ({self.cpu_s:.1f} s of CPU), "
                f"{self.peak_memory_mb:.0f} MB",
                f"  every job ended: {self.tasks:,} tasks recorded, each once; {self.failed:,} of them failed",
                f"  utilisation {self.utilisation:.1%}, wasted work {self.wasted_share:.2%}",
                f"  {self.grants:,} leases, {self.releases:,} of them not begun; {self.retried:,} tasks run again; "
                f"{self.lost_nodes:,} departures of nodes",
                f"  faults: {faults}; {self.take_overs} take-overs, {self.stale_leases} stale leases and "
                f"{self.fenced_commits} stale commits refused",
                f"  {self.plans:,} plans of {self.mean_plan_ms:.2f} ms moved {self.moves:,} slots",
                f"  {self.messages:,} messages, {self.lost_messages:,} lost; {self.events:,} events, "
                f"{self.cpu_s / max(1, self.events) * 1e6:.1f} µs of CPU each",
                f"  transcript {self.digest}",
            )
        )
