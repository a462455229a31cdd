"""The decisions of a slot, alone: each rule."""

from __future__ import annotations

import pytest

from fallow.agent.hand_ins import HAND_IN_BYTES, split_results
from fallow.agent.slot_effects import (
    Abort,
    Begin,
    Cut,
    Deliver,
    Discard,
    Effect,
    Later,
    Prepare,
    Refuse,
    Retire,
    SendPull,
    SendUnpull,
)
from fallow.agent.slot_lanes import LEND_LIMIT
from fallow.agent.slot_pulls import PULL_AGAIN_S
from fallow.agent.slot_state import SlotMachine
from fallow.agent.worker_api import Report
from fallow.model.ids import JobId
from fallow.model.parts import Death
from tests.agent.slots import NODE, done, lease, of, page, spec


def ready() -> SlotMachine:
    machine = SlotMachine(NODE, 0)
    assert of(machine.assign(1, 1, spec(), 0.0), Prepare)
    [pull] = machine.prepared(JobId("job-aaaaaa"), 0.0)
    assert isinstance(pull, SendPull)
    assert (pull.pull.seq, pull.pull.idle) == (1, True)
    return machine


def test_a_lease_begins_at_once_and_the_next_is_asked_for_ahead() -> None:
    machine = ready()
    begin, later = machine.lease(lease(1, 0, 10), 0.1)
    assert isinstance(begin, Begin)
    assert isinstance(later, Later)
    [pull] = machine.tick(0.1 + later.delay_s)
    assert isinstance(pull, SendPull)
    assert not pull.pull.idle


def test_nothing_is_asked_ahead_while_a_lease_may_be_over_in_a_moment() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 1), 0.1)
    [deliver] = machine.reported(0, done(1, 0, 1), 0.1003)
    assert isinstance(deliver, Deliver)
    assert deliver.pull is not None
    assert (deliver.pull.seq, deliver.pull.idle) == (2, True)
    assert machine.tick(0.103) == []


def test_the_prefetched_lease_begins_before_the_last_is_handed_in() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    machine.tick(0.11)
    assert machine.lease(lease(2, 10, 20, pull_seq=2), 0.2) == []
    begin, deliver = machine.reported(0, done(1, 0, 10), 0.3)
    assert isinstance(begin, Begin)
    assert begin.held.token == (1, 2)
    assert isinstance(deliver, Deliver)
    assert deliver.hand_in.ended
    assert deliver.pull is not None, "leases take long here: the next one is asked for at once"
    assert (deliver.pull.seq, deliver.pull.idle) == (3, False)


def test_after_a_short_lease_the_next_is_asked_for_once_it_has_run_for_a_moment() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    machine.tick(0.11)
    machine.lease(lease(2, 10, 20, pull_seq=2), 0.111)
    begin, deliver, later = machine.reported(0, done(1, 0, 10), 0.112)
    assert isinstance(begin, Begin)
    assert isinstance(deliver, Deliver)
    assert deliver.pull is None
    assert isinstance(later, Later)
    assert of(machine.tick(0.12), SendPull)


def test_without_a_prefetched_lease_the_hand_in_carries_an_idle_pull() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    machine.tick(0.11)
    [deliver] = machine.reported(0, done(1, 0, 10), 0.3)
    assert isinstance(deliver, Deliver)
    assert deliver.pull is not None
    assert deliver.pull.idle
    assert deliver.pull.seq == 3


def test_a_lease_that_was_held_before_is_not_new() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    assert machine.lease(lease(1, 0, 10), 0.1) == []
    machine.reported(0, done(1, 0, 10), 0.3)
    assert machine.lease(lease(1, 0, 10), 0.4) == []


def test_an_answer_that_crossed_a_newer_pull_is_taken_and_no_third_is_asked_for() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    machine.tick(0.11)
    machine.reported(0, done(1, 0, 10), 0.3)  # pull 3 stands, the answer to pull 2 is under way
    [begin] = machine.lease(lease(2, 10, 20, pull_seq=2), 0.4)
    assert isinstance(begin, Begin)
    assert machine.pull is not None
    assert machine.pull.seq == 3


def test_a_lease_of_another_job_goes_back_whole() -> None:
    machine = ready()
    deliver = machine.lease(lease(9, 5, 8, job="job-zzzzzz"), 0.1)[0]
    assert isinstance(deliver, Deliver)
    assert deliver.hand_in.give_back == ((5, 8),)
    assert deliver.hand_in.ended


def test_another_job_waits_for_the_running_lease_and_the_prefetched_one_goes_back() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    machine.lease(lease(2, 10, 20, pull_seq=2), 0.1)
    effects = machine.assign(1, 2, spec("job-bbbbbb"), 0.2)
    [back] = of(effects, Deliver)
    assert back.hand_in.give_back == ((10, 20),)
    assert machine.prepared(JobId("job-bbbbbb"), 0.2) == []
    effects = machine.reported(0, done(1, 0, 10), 0.5)
    [pull] = of(effects, SendPull)
    assert pull.pull.job_id == "job-bbbbbb"
    assert pull.pull.idle
    [deliver] = of(effects, Deliver)
    assert deliver.pull is None


def test_an_idle_slot_switches_at_once() -> None:
    machine = ready()
    effects = machine.assign(1, 2, spec("job-bbbbbb"), 0.2)
    assert of(effects, SendUnpull)
    assert of(effects, Prepare)
    [pull] = machine.prepared(JobId("job-bbbbbb"), 0.3)
    assert isinstance(pull, SendPull)


def test_older_assignments_are_ignored() -> None:
    machine = ready()
    assert machine.assign(0, 99, spec("job-bbbbbb"), 0.1) == []
    assert machine.job_id == "job-aaaaaa"


def test_a_new_owner_of_the_same_job_hears_the_pull() -> None:
    machine = ready()
    [pull] = machine.assign(2, 1, spec(), 0.1)
    assert isinstance(pull, SendPull)
    assert pull.pull.seq == 2


def test_an_unanswered_pull_is_made_anew() -> None:
    machine = ready()
    assert machine.tick(PULL_AGAIN_S - 0.1) == []
    [pull] = machine.tick(PULL_AGAIN_S + 0.1)
    assert isinstance(pull, SendPull)
    assert pull.pull.seq == 2


def test_a_suspect_runs_with_nothing_asked_ahead() -> None:
    machine = ready()
    effects = machine.lease(lease(1, 3, 4, alone=True), 0.1)
    assert not of(effects, SendPull)


class TestTakingBack:
    def test_a_prefetched_lease_goes_back_whole(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        machine.lease(lease(2, 10, 20, pull_seq=2), 0.1)
        effects = machine.take_back(JobId("job-aaaaaa"), (1, 2), 1.0, 0.2)
        assert of(effects, Deliver)[0].hand_in.give_back == ((10, 20),)
        assert of(effects, Deliver)[0].hand_in.ended

    def test_half_of_what_is_not_begun(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        [cut] = machine.take_back(JobId("job-aaaaaa"), (1, 1), 0.5, 0.2)
        assert isinstance(cut, Cut)
        assert machine.plan_cut(cut.held, 0.5, 3) == 7
        [deliver] = machine.cut(cut.held, 3)
        assert isinstance(deliver, Deliver)
        assert deliver.hand_in.give_back == ((7, 10),)
        assert not deliver.hand_in.ended

    def test_never_what_has_begun(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        [cut] = machine.take_back(JobId("job-aaaaaa"), (1, 1), 1.0, 0.2)
        assert isinstance(cut, Cut)
        machine.plan_cut(cut.held, 1.0, 3)
        [deliver] = machine.cut(cut.held, 5)  # it began two more before it saw the limit
        assert isinstance(deliver, Deliver)
        assert deliver.hand_in.give_back == ((6, 10),)

    def test_an_order_that_ends_first_gives_back_what_the_limit_cut_off(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        [cut] = machine.take_back(JobId("job-aaaaaa"), (1, 1), 0.5, 0.2)
        assert isinstance(cut, Cut)
        machine.plan_cut(cut.held, 0.5, 3)
        [deliver] = machine.reported(0, done(1, 0, 7), 0.3)
        assert isinstance(deliver, Deliver)
        assert deliver.hand_in.give_back == ((7, 10),)
        assert machine.cut(cut.held, 6) == []

    def test_an_order_that_was_faster_than_the_limit_gives_nothing_back(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        [cut] = machine.take_back(JobId("job-aaaaaa"), (1, 1), 0.5, 0.2)
        assert isinstance(cut, Cut)
        machine.plan_cut(cut.held, 0.5, 3)
        [deliver] = machine.reported(0, done(1, 0, 10), 0.3)
        assert isinstance(deliver, Deliver)
        assert deliver.hand_in.give_back == ()

    def test_what_went_back_is_not_given_back_again_when_the_budget_ends(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        [cut] = machine.take_back(JobId("job-aaaaaa"), (1, 1), 0.5, 0.2)
        assert isinstance(cut, Cut)
        machine.plan_cut(cut.held, 0.5, 3)
        machine.cut(cut.held, 3)
        report = Report((1, 1), (page(0, 5),), give_back=((5, 10),), ended=True)
        [deliver] = machine.reported(0, report, 0.4)
        assert isinstance(deliver, Deliver)
        assert deliver.hand_in.give_back == ((5, 7),)


class TestDeathAndRevoking:
    def test_a_death_is_handed_in_and_the_next_lease_begins(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        machine.lease(lease(2, 10, 20, pull_seq=2), 0.1)
        begin, deliver = machine.died(0, (1, 1), Death(4, "worker_lost", "killed by SIGSEGV"), 0.2)
        assert isinstance(begin, Begin)
        assert isinstance(deliver, Deliver)
        assert deliver.hand_in.ended
        assert deliver.hand_in.deaths[0].index == 4

    def test_a_revoked_lease_is_aborted_and_nothing_of_it_is_handed_in(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        [abort] = machine.revoke(JobId("job-aaaaaa"), [(1, 1)], "recorded elsewhere", 0.2)
        assert isinstance(abort, Abort)
        assert machine.reported(0, Report((1, 1), (page(0, 3),), {"d": "file"}), 0.3) == [Discard({"d": "file"})]
        effects = machine.reported(0, Report((1, 1), ended=True), 0.3)
        assert not of(effects, Deliver)

    def test_a_job_that_ended_is_forgotten(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        machine.lease(lease(2, 10, 20, pull_seq=2), 0.1)
        machine.revoke(JobId("job-aaaaaa"), [], "cancelled", 0.2)
        assert machine.job_id is None
        assert machine.held() == []
        effects = machine.died(0, (1, 1), Death(0, "cancelled", ""), 0.3)
        assert effects == []
        assert machine.lanes.active is None

    def test_a_job_that_cannot_run_here_is_refused_and_left(self) -> None:
        machine = SlotMachine(NODE, 0)
        machine.assign(1, 1, spec(), 0.0)
        [refuse] = machine.refused(JobId("job-aaaaaa"), "environment", "no such package", True)
        assert isinstance(refuse, Refuse)
        assert machine.job_id is None


class TestLending:
    def lend(self, machine: SlotMachine, lane: int, now: float) -> tuple[bool, list[Effect]]:
        return machine.lend(lane, True, now)

    def test_a_waiting_task_lends_its_slot_up_to_a_bound(self) -> None:
        machine = ready()
        now = 0.0
        effects = machine.lease(lease(0, 0, 1), now)
        for number in range(LEND_LIMIT):
            now += 1.0
            lane = of(effects, Begin)[0].lane
            lent, pulls = self.lend(machine, lane, now)
            assert lent
            assert of(pulls, SendPull)[0].pull.idle
            effects = machine.lease(lease(number + 1, number + 1, number + 2, pull_seq=99), now)
            assert of(effects, Later), "it waits a moment for an assignment to the nested job"
            now += 1.0
            effects = machine.tick(now)
        lent, _ = self.lend(machine, of(effects, Begin)[0].lane, now)
        assert not lent
        machine.check()

    def test_a_lent_slot_switches_to_the_nested_job_at_once(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        self.lend(machine, 0, 0.2)
        machine.assign(1, 2, spec("job-bbbbbb"), 0.21)
        [pull] = machine.prepared(JobId("job-bbbbbb"), 0.21)
        assert isinstance(pull, SendPull)
        assert pull.pull.idle
        effects = machine.lease(lease(1, 0, 1, pull_seq=9, job="job-bbbbbb"), 1.0)
        assert of(effects, Begin)[0].lane == 1

    def test_extra_lanes_go_when_they_are_idle(self) -> None:
        machine = ready()
        machine.lease(lease(1, 0, 10), 0.1)
        self.lend(machine, 0, 0.2)
        machine.lease(lease(2, 10, 20, pull_seq=9), 1.0)
        machine.reported(1, done(2, 10, 20), 1.1)
        machine.lend(0, False, 1.2)
        assert machine.retire_idle() == [Retire(1)]
        machine.check()


def test_draining_gives_back_what_waits_and_resuming_pulls_again() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    machine.lease(lease(2, 10, 20, pull_seq=2), 0.1)
    effects = machine.drain(True, 0.2)
    assert of(effects, Deliver)[0].hand_in.give_back == ((10, 20),)
    [deliver] = machine.reported(0, done(1, 0, 10), 0.3)
    assert isinstance(deliver, Deliver)
    assert deliver.pull is None
    assert of(machine.drain(False, 0.4), Prepare)
    assert of(machine.prepared(JobId("job-aaaaaa"), 0.5), SendPull)


def test_large_results_go_in_several_hand_ins_of_which_the_last_carries_the_end() -> None:
    pages = tuple(page(at, at + 1, b"x" * (HAND_IN_BYTES // 2)) for at in range(5))
    assert [len(run) for run in split_results(pages)] == [2, 2, 1]
    machine = ready()
    machine.lease(lease(1, 0, 5), 0.1)
    effects = machine.reported(0, Report((1, 1), pages, ended=True, run_s=1.0), 0.2)
    hand_ins = [effect.hand_in for effect in of(effects, Deliver)]
    assert [hand_in.ended for hand_in in hand_ins] == [False, False, True]
    assert [hand_in.seq for hand_in in hand_ins] == [1, 2, 3]
    assert sum(hand_in.run_s for hand_in in hand_ins) == pytest.approx(1.0)


def test_a_slot_that_is_another_jobs_gives_back_what_it_has_not_begun() -> None:
    """Whoever gets it waits for the task in progress, and not for the rest of the lease."""
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    machine.tick(0.2)
    machine.lease(lease(2, 10, 20, pull_seq=2), 0.3)
    back, cut, prepare = machine.assign(1, 2, spec("job-bbbbbb"), 0.4)
    assert isinstance(back, Deliver)
    assert back.hand_in.give_back == ((10, 20),)
    assert isinstance(cut, Cut)
    assert isinstance(prepare, Prepare)
    assert machine.plan_cut(cut.held, cut.share, index=3) == 4
    [rest] = machine.cut(cut.held, index=3)
    assert isinstance(rest, Deliver)
    assert (rest.hand_in.give_back, rest.hand_in.ended) == (((4, 10),), False)
    assert not machine.prepared(JobId("job-bbbbbb"), 0.5), "a task is in progress"
    deliver, pull = machine.reported(0, done(1, 0, 4), 0.6)
    assert isinstance(deliver, Deliver)
    assert isinstance(pull, SendPull)
    assert (pull.pull.job_id, pull.pull.idle) == ("job-bbbbbb", True)


def test_a_slot_that_is_taken_from_a_job_and_given_to_none_goes_on() -> None:
    machine = ready()
    machine.lease(lease(1, 0, 10), 0.1)
    assert not of(machine.assign(1, 2, None, 0.4), Cut)
