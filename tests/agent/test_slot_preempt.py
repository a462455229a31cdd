"""What a slot decides when the machine's owner comes back, without any process."""

from __future__ import annotations

from fallow.agent.slot_effects import Begin, Deliver, Preempt, Prepare, SendPull, SendUnpull
from fallow.agent.slot_state import SlotMachine
from fallow.model.ids import JobId
from tests.agent.slots import NODE, done, lease, of, spec


def at_work() -> SlotMachine:
    """Runs [0, 10), with [10, 20) waiting."""
    machine = SlotMachine(NODE, 0)
    machine.assign(1, 1, spec(), 0.0)
    machine.prepared(JobId("job-aaaaaa"), 0.0)
    machine.lease(lease(1, 0, 10), 0.0)
    machine.lease(lease(2, 10, 20, 2), 0.1)
    return machine


def test_what_waits_goes_back_whole_and_what_runs_gets_notice() -> None:
    machine = at_work()
    effects = machine.preempt()
    (back,) = of(effects, Deliver)
    assert (back.hand_in.token, back.hand_in.give_back, back.hand_in.ended) == ((1, 2), ((10, 20),), True)
    assert [effect.held.token for effect in of(effects, Preempt)] == [(1, 1)]
    machine.check()
    assert not of(machine.tick(60.0), SendPull)
    assert not of(machine.pull_again(60.0), SendPull)


def test_a_pull_that_stands_is_taken_back() -> None:
    machine = SlotMachine(NODE, 0)
    machine.assign(1, 1, spec(), 0.0)
    machine.prepared(JobId("job-aaaaaa"), 0.0)
    assert of(machine.preempt(), SendUnpull)
    assert machine.pull is None
    assert machine.preempt() == []


def test_a_task_that_is_cut_short_goes_back_and_is_no_death() -> None:
    machine = at_work()
    machine.preempt()
    machine.reported(0, done(1, 0, 4, ended=False), 0.2)
    (last,) = of(machine.preempted(0, (1, 1), 7.5, 1.0), Deliver)
    hand_in = last.hand_in
    assert (hand_in.give_back, hand_in.ended, hand_in.deaths, hand_in.wasted_s) == (((4, 10),), True, (), 7.5)
    assert machine.preempted(0, (1, 1), 7.5, 1.0) == []
    machine.check()


def test_a_lease_that_was_on_its_way_goes_back() -> None:
    machine = at_work()
    machine.preempt()
    effects = machine.lease(lease(3, 20, 30, 3), 0.3)
    assert [effect.hand_in.give_back for effect in of(effects, Deliver)] == [((20, 30),)]
    assert not of(effects, Begin)


def test_allowed_again_it_prepares_and_pulls() -> None:
    machine = at_work()
    machine.preempt()
    machine.preempted(0, (1, 1), 0.0, 1.0)
    assert of(machine.allow(), Prepare)
    assert of(machine.prepared(JobId("job-aaaaaa"), 2.0), SendPull)
    machine.check()


def test_a_node_that_drains_stays_shut_when_its_owner_leaves() -> None:
    machine = at_work()
    machine.preempt()
    machine.drain(True, 0.5)
    assert machine.allow() == []
    assert not of(machine.prepared(JobId("job-aaaaaa"), 2.0), SendPull)
    assert of(machine.drain(False, 3.0), Prepare)


def test_a_job_that_comes_meanwhile_is_prepared_afterwards() -> None:
    machine = at_work()
    machine.preempt()
    assert not of(machine.assign(1, 2, spec("job-bbbbbb"), 0.5), Prepare)
    assert [effect.spec.job_id for effect in of(machine.allow(), Prepare)] == ["job-bbbbbb"]
