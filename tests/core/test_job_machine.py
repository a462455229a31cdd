"""A job's progress under any order of events, repeats and losses: every task in one place, recorded once, and done."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fallow.core.effects import AskBack, Drop, Effect, Grant, Record, RecordFault
from fallow.core.intervals import IntervalSet
from fallow.core.job import JobProgress
from fallow.model.ids import CALL_TOKENS, ClientId, Digest, Interval, JobId, NodeId, SlotKey, Token, call_token
from fallow.model.job import Blob, JobKind, JobSpec, RetryPolicy
from fallow.model.parts import Death, HeldLease, ResultPage, RetryLater
from fallow.model.states import JobState

PAGE = Blob(Digest("00"), 1, b"x")


@dataclass
class Held:
    """A lease as the agent of this test holds it."""

    token: Token
    slot: SlotKey
    start: int
    stop: int
    at: int
    """The next task that it has not begun."""


@dataclass
class World:
    """Agents, the network and the store around one job. Lost messages never arrive; old ones may come again."""

    seed: int
    total: int
    reduce: bool = False
    now: float = 100.0
    recorded: IntervalSet = field(default_factory=IntervalSet)
    held: dict[Token, Held] = field(default_factory=dict)
    had: set[Token] = field(default_factory=set)
    sent: list[dict[str, object]] = field(default_factory=list)
    pull_seq: int = 0
    faulty: bool = True

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.slots: list[SlotKey] = [(NodeId(f"node{n}"), s) for n in range(3) for s in range(2)]
        self.progress = self._fresh(1)

    def _fresh(self, epoch: int) -> JobProgress:
        spec = JobSpec(
            JobId("job-aaaaaa"),
            "test",
            JobKind.MAP,
            ClientId("client-a"),
            PAGE,
            retry=RetryPolicy(retries=2, backoff_s=0.5),
            reduce=self.reduce,
        )
        return JobProgress(spec, epoch, hold_until=0.0)

    # ---------------------------------------------------------------- what the shell does

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Grant():
                    if effect.token not in self.had and (not self.faulty or self.random.random() > 0.1):
                        self.had.add(effect.token)
                        self.held[effect.token] = Held(
                            effect.token, effect.slot, effect.start, effect.stop, effect.start
                        )
                case AskBack():
                    self.give_back(effect.token, effect.share)
                case Drop():
                    for token in effect.tokens or list(self.held):
                        if token in self.held and self.held[token].slot[0] == effect.node:
                            del self.held[token]
                case Record():
                    fresh = self.recorded.add(effect.page.start, effect.page.stop)
                    assert fresh == [(effect.page.start, effect.page.stop)], "recorded twice"
                case RecordFault():
                    index = effect.fault.index
                    assert self.recorded.add(index, index + 1) == [(index, index + 1)], "recorded twice"
                case _:
                    pass
        if not self.progress.is_final:
            self.progress.check()
            assert self.progress.done == self.recorded

    def hand_in(self, **message: object) -> None:
        self.sent.append(message)
        if not self.faulty or self.random.random() > 0.1:
            self.perform(self.progress.hand_in(now=self.now, **message))  # type: ignore[arg-type]

    # ---------------------------------------------------------------- what happens

    def pull(self) -> None:
        self.pull_seq += 1
        slot = self.random.choice(self.slots)
        idle = not any(held.slot == slot for held in self.held.values())
        self.progress.node_heard(slot[0])
        self.progress.pull(slot, self.pull_seq, idle, ())
        self.perform(self.progress.dispatch(self.now))

    def work(self) -> None:
        if not self.held:
            return
        held = self.random.choice(list(self.held.values()))
        stop = self.random.randint(held.at, held.stop)
        page = self._page(held.at, stop)
        ended = stop == held.stop
        held.at = stop
        if ended:
            del self.held[held.token]
        results = (page,) if page.stop > page.start else ()
        self._report(held, results=results, ended=ended, reduced=self.reduce)

    def _page(self, start: int, stop: int) -> ResultPage:
        return ResultPage(start, stop, start, PAGE)

    def _report(self, held: Held, **fields: object) -> None:
        fields.setdefault("results", ())
        self.hand_in(slot=held.slot, token=held.token, run_s=0.1, **fields)

    def give_back(self, token: Token, share: float) -> None:
        held = self.held.get(token)
        if held is None:
            return
        cut = held.at + int((held.stop - held.at) * (1 - share))
        pieces: tuple[Interval, ...] = ((cut, held.stop),) if cut < held.stop else ()
        held.stop = cut
        ended = held.at >= held.stop
        if ended:
            del self.held[token]
        self._report(held, give_back=pieces, ended=ended)

    def fail_task(self) -> None:
        if not self.held:
            return
        held = self.random.choice(list(self.held.values()))
        if held.at >= held.stop:
            return
        index = held.at
        kind = self.random.choice(["worker_lost", "timeout", "memory", "later"])
        del self.held[held.token]
        if kind == "later":
            later = (RetryLater(index, 1, 0.2),)
            rest: tuple[Interval, ...] = ((index + 1, held.stop),) if index + 1 < held.stop else ()
            self._report(held, retry_later=later, give_back=rest, ended=True)
        else:
            self._report(held, deaths=(Death(index, kind, "died"),), ended=True)

    def repeat(self) -> None:
        if self.sent:
            message = self.random.choice(self.sent[-20:])
            self.perform(self.progress.hand_in(now=self.now, **message))  # type: ignore[arg-type]

    def lose_node(self) -> None:
        node = self.random.choice(self.slots)[0]
        self.perform(self.progress.node_lost(node, "silent"))

    def hush_node(self) -> None:
        self.progress.node_quiet(self.random.choice(self.slots)[0])

    def kill_node(self) -> None:
        node = self.random.choice(self.slots)[0]
        self.held = {token: held for token, held in self.held.items() if held.slot[0] != node}
        self.perform(self.progress.node_lost(node, "gone"))

    def beat(self) -> None:
        self.now += 1.0
        for node in sorted({slot[0] for slot in self.slots}):
            names = tuple(
                HeldLease(
                    self.progress.spec.job_id,
                    h.token,
                    h.slot[1],
                    h.at,
                    h.stop,
                    h.at if h.at < h.stop else -1,
                    self.random.choice([0.1, 9.0]),
                )
                for h in self.held.values()
                if h.slot[0] == node
            )
            self.perform(self.progress.beat(node, names, self.now))
        self.perform(self.progress.dispatch(self.now))

    def doubt(self) -> None:
        """Nodes seem silent: what they hold may run elsewhere too."""
        self.now += self.random.choice([0.1, 3.0])
        self.progress.doubt(self.now, 2.0)
        self.perform(self.progress.dispatch(self.now))

    def inputs(self) -> None:
        if self.progress.cursor < self.total:
            stop = min(self.total, self.progress.cursor + self.random.randint(1, 40))
            self.progress.add_inputs(self.progress.cursor, stop)
            self.progress.add_inputs(0, stop)
        elif self.progress.state is JobState.OPEN:
            self.perform(self.progress.end_inputs(self.total))

    def send_call(self) -> None:
        """The client sends the next task to an idle slot itself, and to the owner: either may be lost."""
        index = self.progress.cursor
        idle = [slot for slot in self.slots if not any(held.slot == slot for held in self.held.values())]
        if index >= self.total or not idle:
            return
        slot, token = self.random.choice(idle), call_token(self.progress.epoch, index)
        self.progress.add_inputs(index, index + 1)
        if token in self.had:
            return
        self.had.add(token)
        if self.random.random() > 0.1:
            self.held[token] = Held(token, slot, index, index + 1, index)
        if self.random.random() > 0.1:
            assert self.progress.sent_call(slot, index, self.now)
            assert self.progress.waiting(slot) is None
        self.perform([])

    def take_over(self) -> None:
        """The owner dies; another loads what was recorded."""
        old = self.progress
        fresh = self._fresh(old.epoch + 1)
        fresh.restore(
            done=self.recorded.intervals(), cursor=old.cursor, total=old.total, state=old.state, failed=old.failed_count
        )
        self.progress = fresh
        if old.is_final:
            return
        self.perform(fresh.finish_if_done())

    def heal(self) -> None:
        """No more faults: the job must end."""
        self.faulty = False
        for _ in range(4000):
            if self.progress.is_final:
                return
            self.inputs()
            self.beat()
            self.pull()
            self.work()
        raise AssertionError(f"the job does not end: {self.progress.story()}")


EVENTS = (
    ["inputs"] * 4
    + ["pull"] * 8
    + ["work"] * 8
    + ["beat"] * 3
    + ["fail_task"] * 2
    + ["repeat"] * 3
    + ["send_call"] * 2
    + ["lose_node", "kill_node", "take_over", "doubt", "hush_node"]
)


def run(seed: int, total: int, steps: int, reduce: bool) -> None:
    world = World(seed, total, reduce)
    for _ in range(steps):
        getattr(world, world.random.choice(EVENTS))()
    world.heal()
    assert world.recorded.covers(0, total)
    assert world.progress.state is JobState.SUCCEEDED


def test_a_task_that_is_to_be_tried_later_goes_on_in_its_second_run() -> None:
    blob = Blob(Digest("00"), 1, b"x")
    retry = RetryPolicy(retries=2, backoff_s=0.5)
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob, retry=retry), 1)
    job.add_call(0, 1)
    one, other = (NodeId("one"), 0), (NodeId("two"), 0)
    job.pull(one, 1, True, ())
    (first,) = job.dispatch(0.0)
    assert job.doubt(3.0, 2.2)
    job.pull(other, 1, True, ())
    (second,) = job.dispatch(3.0)
    assert isinstance(first, Grant)
    assert isinstance(second, Grant)
    job.hand_in(slot=one, token=first.token, results=(), retry_later=(RetryLater(0, 1, 0.2),), ended=True, now=3.1)
    job.check()
    job.pull(one, 2, True, ())
    assert job.dispatch(4.0) == [], "it runs"
    job.hand_in(slot=other, token=second.token, results=(), deaths=(Death(0, "timeout", "late"),), ended=True, now=4.1)
    job.check()
    assert [task.index for task in job.failures.delayed] == [0]


def test_a_slot_that_its_client_sent_a_call_does_not_wait_for_one() -> None:
    blob = Blob(Digest("00"), 1, b"x")
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob), 1)
    slot = (NodeId("one"), 0)
    job.add_call(0, 1)
    job.pull(slot, 1, True, ())
    (first,) = job.dispatch(0.0)
    assert isinstance(first, Grant)
    job.add_call(1, 2)
    assert job.sent_call(slot, 1, 0.1)
    answer = (ResultPage(0, 1, 0, blob),)
    job.hand_in(slot=slot, token=first.token, results=answer, ended=True, now=0.2)
    job.pull(slot, 2, True, ())  # it was asked before the call came
    job.add_call(2, 3)
    assert job.dispatch(0.2) == [], "the slot is busy with the call that it was sent"
    assert not job.sent_call(slot, 1, 0.3), "a message that comes twice moves nothing"
    answer = (ResultPage(1, 2, 1, blob),)
    job.hand_in(slot=slot, token=call_token(1, 1), results=answer, ended=True, now=0.4)
    job.pull(slot, 3, True, ())
    (third,) = job.dispatch(0.4)
    assert isinstance(third, Grant)
    assert (third.start, third.token < (1, CALL_TOKENS)) == (2, True)
    job.check()


def test_a_slot_that_asks_before_it_hands_in_its_call_is_answered_then() -> None:
    """A large result is stored before it is handed in: the slot asks for its next lease meanwhile."""
    blob = Blob(Digest("00"), 1, b"x")
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob), 1)
    slot = (NodeId("one"), 0)
    job.add_call(0, 1)
    assert job.sent_call(slot, 0, 0.0)
    job.add_call(1, 2)
    job.pull(slot, 2, True, ())
    assert job.dispatch(0.1) == [], "this pull may be the one that the call has answered"
    job.node_quiet(slot[0])
    job.node_heard(slot[0])
    job.pull(slot, 3, True, ())
    answer = (ResultPage(0, 1, 0, blob),)
    job.hand_in(slot=slot, token=call_token(1, 0), results=answer, ended=True, now=0.2)
    assert job.waiting(slot) is not None
    (grant,) = job.dispatch(0.2)
    assert isinstance(grant, Grant)
    assert (grant.start, grant.pull_seq) == (1, 3)
    assert job.sent_call(slot, 1, 0.3) is False
    job.add_call(2, 3)
    assert job.sent_call(slot, 2, 0.3)
    job.pull(slot, 4, True, ())
    job.node_lost(slot[0], "gone")
    assert job.waiting(slot) is None
    assert not job.pulls
    job.check()


def test_calls_that_nobody_waits_for_are_stopped() -> None:
    blob = Blob(Digest("00"), 1, b"x")
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob), 1)
    one, two = (NodeId("one"), 0), (NodeId("two"), 0)
    job.add_call(0, 5)
    job.pull(one, 1, True, ())
    (first,) = job.dispatch(0.0)
    assert isinstance(first, Grant)
    assert first.stop < 4
    job.hand_in(slot=one, token=first.token, results=(ResultPage(0, first.stop, 0, blob),), ended=True, now=0.1)
    job.add_call(5, 6)
    assert job.sent_call(two, 5, 0.2)
    assert job.cancel_calls([(5, 6), (4, 5)]) == [Drop(two[0], (call_token(1, 5),), "nobody waits for it")]
    job.check()
    assert 4 not in job.todo
    assert not job.leases
    late = (ResultPage(5, 6, 5, blob),)
    assert job.hand_in(slot=two, token=call_token(1, 5), results=late, ended=True, now=0.3) == []
    assert job.cancel_calls([(90, 91)]) == []


def test_a_call_that_never_reached_its_slot_is_sent_again_by_its_owner() -> None:
    blob = Blob(Digest("00"), 1, b"x")
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob), 1)
    slot = (NodeId("one"), 0)
    job.add_call(0, 1)
    assert job.sent_call(slot, 0, 0.0)
    (again,) = job.beat(slot[0], (), 1.0, 1.0)
    assert isinstance(again, Grant)
    assert (again.token, again.slot, again.start, again.stop) == (call_token(1, 0), slot, 0, 1)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), total=st.integers(0, 300), steps=st.integers(0, 120), reduce=st.booleans())
def test_every_task_is_recorded_once_whatever_happens(seed: int, total: int, steps: int, reduce: bool) -> None:
    run(seed, total, steps, reduce)


def test_a_lost_node_counts_one_task_a_slot_as_run_again_beats_or_not() -> None:
    world = World(seed=1, total=100)
    world.faulty = False
    job = world.progress
    job.add_inputs(0, 100)
    node, slot = world.slots[0][0], world.slots[0]
    effects: list[Effect] = []
    for seq in (1, 2):  # one lease to run, one held in advance: only the first can have begun
        job.pull(slot, seq, seq == 1, ())
        effects += job.dispatch(100.0)
    assert len([effect for effect in effects if isinstance(effect, Grant)]) == 2
    job.node_lost(node, "silent")
    assert (job.retried, job.node_losses) == (1, 0), "no heartbeat said what was in progress: nothing is blamed"
    job.pull(slot, 3, True, ())
    (grant,) = [effect for effect in job.dispatch(101.0) if isinstance(effect, Grant)]
    job.beat(
        node, (HeldLease(JobId("job-aaaaaa"), grant.token, slot[1], grant.start, grant.stop, grant.start, 0.1),), 102.0
    )
    job.node_lost(node, "silent")
    assert (job.retried, job.node_losses) == (2, 1)
