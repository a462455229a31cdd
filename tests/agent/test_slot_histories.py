"""Random histories of a slot, in which no task may be lost or run twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fallow.agent.slot_effects import Begin, Cut, Deliver, Effect, Held, SendPull
from fallow.agent.slot_state import SlotMachine
from fallow.agent.worker_api import Report
from fallow.core.intervals import IntervalSet
from fallow.model.ids import Interval, JobId
from fallow.model.parts import Death
from fallow.wire.messages import HandIn
from tests.agent.slots import NODE, lease, page, spec

JOB, OTHER = JobId("job-aaaaaa"), JobId("job-bbbbbb")


class Simulation:
    """An owner and workers around one slot. Every task must be accounted for exactly once by what is handed in."""

    def __init__(self) -> None:
        self.machine = SlotMachine(NODE, 0)
        self.now = 0.0
        self.counter = 0
        self.cursor = 0
        self.owned: dict[tuple[int, int], IntervalSet] = {}
        """What is open of each lease, as the owner sees it."""
        self.workers: dict[int, Worker] = {}
        self.pulls: list[int] = []
        self.assignments = 1
        self.finished = IntervalSet()
        self.cuts: list[tuple[int, Held]] = []

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Begin(lane=lane, held=held):
                    assert lane not in self.workers
                    self.workers[lane] = Worker(held)
                case Deliver(hand_in=hand_in, pull=pull):
                    self.hand_in(hand_in)
                    if pull is not None:
                        self.pulls.append(pull.seq)
                case SendPull(pull=pull) if pull.job_id == JOB:
                    self.pulls.append(pull.seq)
                case Cut(lane=lane, held=held, share=share):
                    worker = self.workers[lane]
                    worker.limit = self.machine.plan_cut(held, share, worker.at - 1 if worker.at > held.start else -1)
                    self.cuts.append((lane, held))
        self.machine.check()

    def hand_in(self, message: HandIn) -> None:
        open_set = self.owned[message.token[0], message.token[1]]
        parts: list[Interval] = [(page.start, page.stop) for page in message.results] + list(message.give_back)
        for start, stop in parts:
            taken = open_set.remove(start, stop)
            assert taken == [(start, stop)], f"{(start, stop)} of {message.token} was not open any more"
        for page_ in message.results:
            assert self.finished.add(page_.start, page_.stop) == [(page_.start, page_.stop)], "ran twice"
        if message.ended:
            if not message.deaths:
                assert not open_set, f"{open_set} of {message.token} was lost without a death"
            del self.owned[message.token[0], message.token[1]]

    def assign(self, job: str) -> None:
        self.assignments += 1
        self.perform(self.machine.assign(1, self.assignments, spec(job), self.now))
        self.perform(self.machine.prepared(JobId(job), self.now))

    def give_lease(self, size: int) -> None:
        if not self.pulls:
            return
        seq = self.pulls.pop(0)
        self.counter += 1
        start, self.cursor = self.cursor, self.cursor + size
        self.owned[1, self.counter] = IntervalSet([(start, self.cursor)])
        self.perform(self.machine.lease(lease(self.counter, start, self.cursor, seq), self.now))

    def work(self, lane: int, tasks: int) -> None:
        worker = self.workers.get(lane)
        if worker is None:
            return
        stop = min(worker.held.stop, worker.limit, worker.at + tasks)
        first, worker.at = worker.at, max(worker.at, stop)
        ended = worker.at >= min(worker.held.stop, worker.limit)
        results = (page(first, worker.at),) if worker.at > first else ()
        if not results and not ended:
            return
        if ended:
            del self.workers[lane]
        self.perform(self.machine.reported(lane, Report(worker.held.token, results, ended=ended), self.now))

    def settle_cuts(self) -> None:
        cuts, self.cuts = self.cuts, []
        for lane, held in cuts:
            worker = self.workers.get(lane)
            if worker is not None and worker.held is held:
                self.perform(self.machine.cut(held, worker.at - 1 if worker.at > held.start else -1))

    def die(self, lane: int) -> None:
        worker = self.workers.pop(lane, None)
        if worker is not None:
            death = Death(worker.at, "worker_lost", "killed")
            self.perform(self.machine.died(lane, worker.held.token, death, self.now))


class Worker:
    def __init__(self, held: Held) -> None:
        self.held = held
        self.at = held.start
        self.limit = held.stop


steps = st.one_of(
    st.tuples(st.just("lease"), st.integers(1, 20)),
    st.tuples(st.just("work"), st.integers(0, 12)),
    st.tuples(st.just("back"), st.integers(0, 100)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("die"), st.just(0)),
    st.tuples(st.just("tick"), st.integers(0, 60)),
    st.tuples(st.just("drain"), st.just(0)),
    st.tuples(st.just("lend"), st.integers(0, 1)),
    st.tuples(st.just("away"), st.just(0)),
    st.tuples(st.just("home"), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_no_task_is_lost_or_run_twice(history: list[tuple[str, int]]) -> None:
    run = Simulation()
    run.assign(JOB)
    for step, value in history:
        run.now += 0.01
        match step:
            case "lease":
                run.give_lease(value)
            case "work":
                run.work(value % 3, value)
            case "back":
                for token in list(run.owned)[:2]:
                    run.perform(run.machine.take_back(JOB, token, value / 100, run.now))
            case "settle":
                run.settle_cuts()
            case "die":
                run.die(0)
            case "tick":
                run.now += value / 10
                run.perform(run.machine.tick(run.now))
            case "drain":
                run.perform(run.machine.drain(not run.machine.draining, run.now))
                for job in (JOB, OTHER):
                    run.perform(run.machine.prepared(job, run.now))
            case "away":
                run.assign(OTHER)
            case "home":
                run.assign(JOB)
            case "lend":
                _, effects = run.machine.lend(0, bool(value), run.now)
                run.perform(effects)
    # In the end everything runs to its end, and nothing is left open.
    run.perform(run.machine.drain(True, run.now))
    for _ in range(50):
        run.settle_cuts()
        for lane in list(run.workers):
            run.work(lane, 1000)
    assert run.owned == {}
