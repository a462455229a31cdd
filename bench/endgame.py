"""What decomposition itself costs: `python -m bench.endgame [--tasks 400] [--slots 2] [--total-s 20] [--latency-ms 1]`.

Drives the real `core.job` in virtual time with the lengths of the bench row `skew`, agents that work without any
overhead, and messages that take the latency. Prints makespan over its lower bound, and what the end of the job asked.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.workloads import skewed_lengths
from fallow.core.effects import AskBack, Grant
from fallow.core.job import JobProgress
from fallow.model.ids import ClientId, Digest, Interval, JobId, NodeId, SlotKey, Token
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.parts import ResultPage

BLOB = Blob(Digest("00"), 1, b"x")
NODE = NodeId("n")


@dataclass
class Found:
    """Times in virtual seconds; counts of one run."""

    makespan_s: float
    bound_s: float
    leases: int
    asked: int
    granted_back: int
    """Leases given back without a task of theirs having run."""
    doubled: int
    idle_s: float

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.bound_s


@dataclass
class _Lease:
    token: Token
    start: int
    stop: int
    at: int
    began: float = 0.0
    task_began: float = 0.0


class Model:
    """One job on slots of one node; `run` it once."""

    def __init__(self, lengths: list[float], slots: int, latency_s: float, speculate: bool = True) -> None:
        self.lengths = lengths
        self.latency_s = latency_s
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        spec = JobSpec(JobId("j"), "j", JobKind.MAP, ClientId("c"), BLOB, speculate=speculate)
        self.progress = JobProgress(spec, 1)
        self.progress.slots = slots
        self.progress.add_inputs(0, len(lengths))
        self.progress.end_inputs(len(lengths))
        self.running: dict[SlotKey, _Lease | None] = {(NODE, i): None for i in range(slots)}
        self.queued: dict[SlotKey, _Lease | None] = dict.fromkeys(self.running)
        self.seqs = dict.fromkeys(self.running, 0)
        self.open: dict[SlotKey, bool | None] = dict.fromkeys(self.running)
        self.idle_since: dict[SlotKey, float] = dict.fromkeys(self.running, 0.0)
        self.leases = self.asked = self.given_back = 0
        self.idle_s = 0.0
        self._wake = -1.0

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, what, args))

    def run(self) -> Found:
        for slot in self.running:
            self._want(slot)
        while self._heap and not self.progress.is_final:
            self.now, _, what, args = heapq.heappop(self._heap)
            what(*args)
        assert self.progress.is_final, self.progress.story()
        self.idle_s += sum(self.now - self.idle_since[s] for s, lease in self.running.items() if lease is None)
        bound_s = max(sum(self.lengths) / len(self.running), max(self.lengths))
        doubled = self.progress.doubled_count
        return Found(self.now, bound_s, self.leases, self.asked, self.given_back, doubled, self.idle_s)

    # ------------------------------------------------------------ the owner

    def _perform(self, effects: list[Any]) -> None:
        for effect in [*effects, *self.progress.dispatch(self.now)]:
            match effect:
                case Grant():
                    self.leases += 1
                    self.after(self.latency_s, self._granted, effect)
                case AskBack():
                    self.asked += 1
                    self.after(self.latency_s, self._take_back, effect)
                case _ if hasattr(effect, "at") and effect.at != self._wake and not self.progress.is_final:
                    self._wake = effect.at
                    self.after(max(0.001, effect.at - self.now), self._perform, [])
                case _:
                    pass

    def _pulled(self, slot: SlotKey, seq: int, idle: bool) -> None:
        self.progress.pull(slot, seq, idle, ())
        self._perform([])

    def _handed_in(
        self, slot: SlotKey, lease: _Lease, results: Interval | None, back: Interval | None, ended: bool, run_s: float
    ) -> None:
        pages = [ResultPage(*results, results[0], BLOB)] if results else []
        self._perform(
            self.progress.hand_in(
                slot=slot, token=lease.token, results=pages,
                give_back=[back] if back else (), ended=ended, run_s=run_s, now=self.now,
            )
        )  # fmt: skip

    # ------------------------------------------------------------ the slots

    def _want(self, slot: SlotKey) -> None:
        idle = self.running[slot] is None
        if self.queued[slot] is None and self.open[slot] not in (True, idle):
            self.seqs[slot] += 1
            self.open[slot] = idle
            self.after(self.latency_s, self._pulled, slot, self.seqs[slot], idle)

    def _granted(self, grant: Grant) -> None:
        if grant.pull_seq >= self.seqs[grant.slot]:
            self.open[grant.slot] = None
        self.queued[grant.slot] = _Lease(grant.token, grant.start, grant.stop, grant.start)
        self._begin(grant.slot)

    def _begin(self, slot: SlotKey) -> None:
        lease = self.queued[slot]
        if self.running[slot] is None and lease is not None:
            self.idle_s += self.now - self.idle_since[slot]
            self.queued[slot] = None
            self.running[slot] = lease
            lease.began = lease.task_began = self.now
            self.after(self.lengths[lease.at], self._task_done, slot, lease)
        self._want(slot)

    def _task_done(self, slot: SlotKey, lease: _Lease) -> None:
        lease.at += 1
        if lease.at < lease.stop:
            lease.task_began = self.now
            self.after(self.lengths[lease.at], self._task_done, slot, lease)
            return
        self.running[slot] = None
        self.idle_since[slot] = self.now
        args = (slot, lease, (lease.start, lease.stop), None, True, self.now - lease.began)
        self.after(self.latency_s, self._handed_in, *args)
        self._begin(slot)

    def _take_back(self, ask: AskBack) -> None:
        queued, running = self.queued[ask.slot], self.running[ask.slot]
        if queued is not None and queued.token == ask.token:
            self.queued[ask.slot] = None
            self.given_back += 1
            back = (queued.start, queued.stop)
            self.after(self.latency_s, self._handed_in, ask.slot, queued, None, back, True, 0.0)
            self._want(ask.slot)
        elif running is not None and running.token == ask.token:
            begun = running.at + 1
            stop = max(begun, running.stop - round((running.stop - begun) * ask.share))
            rest = (stop, running.stop) if stop < running.stop else None
            running.stop = stop
            self.after(self.latency_s, self._handed_in, ask.slot, running, None, rest, False, 0.0)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--total-s", type=float, default=20.0)
    parser.add_argument("--latency-ms", type=float, default=1.0)
    parser.add_argument("--orders", type=int, default=50, help="other orders of the same lengths")
    parser.add_argument("--no-speculation", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    args = arguments().parse_args()
    lengths = skewed_lengths(args.tasks, args.total_s)
    chance = random.Random(1)
    found = []
    for _ in range(1 + args.orders):
        found.append(Model(lengths, args.slots, args.latency_ms / 1e3, not args.no_speculation).run())
        lengths = chance.sample(lengths, len(lengths))
    ratios = sorted(run.ratio for run in found)
    row = {
        "skew_row_ratio": found[0].ratio,
        "median_ratio": ratios[len(ratios) // 2],
        "most_ratio": ratios[-1],
        **{
            name: sum(getattr(run, name) for run in found) / len(found)
            for name in ("leases", "asked", "granted_back", "doubled", "idle_s")
        },
    }
    print(json.dumps(row) if args.json else "\n".join(f"{name:16} {value:8.3f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
