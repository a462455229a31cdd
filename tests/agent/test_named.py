"""What a beat names to owners: nothing to one who hears of the node by its hand-ins, and all that may be in doubt."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from fallow.agent.named import UNANSWERED_S, Named
from fallow.agent.slot_state import SlotMachine
from fallow.model.ids import JobId, Token
from fallow.model.job import JobKind
from fallow.model.parts import HeldLease

from .slots import NODE, lease, spec

JOB = JobId("job-aaaaaa")


@dataclass
class Slot:
    machine: SlotMachine


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


def working(kind: JobKind = JobKind.MAP) -> Slot:
    """A slot that runs its first lease, and has not asked ahead."""
    machine = SlotMachine(NODE, 0)
    machine.assign(1, 1, replace(spec(), kind=kind), 10.0)
    machine.prepared(JOB, 10.0)
    pull = machine.pull
    assert pull is not None
    machine.lease(lease(1, 0, 10, pull.seq), 10.0)
    assert machine.pull is None
    return Slot(machine)


def held(*numbers: int, ahead: tuple[int, ...] = ()) -> dict[JobId, tuple[HeldLease, ...]]:
    """Leases that run, and such that wait."""
    begun = tuple(HeldLease(JOB, token(number), 0, 0, 10, index=3) for number in numbers)
    return {JOB: begun + tuple(HeldLease(JOB, token(number), 0, 0, 10) for number in ahead)}


def token(number: int) -> Token:
    return (1, number)


def test_an_owner_who_heard_that_all_it_was_told_of_is_over_is_not_told() -> None:
    named, slot = Named(Clock()), working()
    assert named.due(held(1), [slot], 1.0, anew=False) == {JOB}, "the first time"
    assert named.due(held(1), [slot], 1.0, anew=False) == {JOB}, "it has heard nothing since"
    assert named.due(held(2), [slot], 1.0, anew=False) == set()
    assert named.due(held(2), [slot], 1.0, anew=False) == {JOB}, "nothing since the beat that told it nothing"
    assert named.due(held(2, 3), [slot], 1.0, anew=False) == {JOB}
    assert named.due(held(3, 4), [slot], 1.0, anew=False) == {JOB}, "one of them runs on"
    assert named.due(held(5, 6), [slot], 1.0, anew=False) == set()
    assert named.due(held(), [slot], 1.0, anew=False) == {JOB}, "it has none: one may be lost"
    assert named.due(held(7, ahead=(8,)), [slot], 1.0, anew=False) == {JOB}
    assert named.due(held(8, ahead=(9,)), [slot], 1.0, anew=False) == set(), "what had not begun was not said to run"
    assert named.due(held(9, ahead=(8,)), [slot], 1.0, anew=False) == {JOB}, "its hand-in has yet to go"
    assert named.due(held(ahead=(10,)), [slot], 1.0, anew=False) == {JOB}, "nothing runs"


def test_whoever_may_wait_for_a_word_gets_it() -> None:
    named, slot = Named(Clock()), working()
    assert named.due(held(1), [slot], 1.0, anew=False) == {JOB}
    assert named.due(held(2), [slot], 1.0, anew=True) == {JOB}, "what was sent before may be lost"
    assert named.due(held(3), [slot], 1.0, anew=False) == set()
    assert named.due(held(4), [slot], 2.0, anew=False) == {JOB}, "the next beat comes later"
    assert named.due(held(5), [], 2.0, anew=False) == {JOB}, "no slot works for it any more"


def test_a_slot_that_waits_for_a_lease_tells_what_has_come() -> None:
    clock, slot = Clock(), working()
    named = Named(clock)
    named.due(held(1), [slot], 1.0, anew=False)
    slot.machine.tick(10.1)
    pull = slot.machine.pull
    assert pull is not None, "it asks ahead"
    clock.now = pull.sent_s + UNANSWERED_S / 2
    assert named.due(held(2), [slot], 1.0, anew=False) == set()
    clock.now = pull.sent_s + UNANSWERED_S
    assert named.due(held(3), [slot], 1.0, anew=False) == {JOB}


def test_calls_are_always_named() -> None:
    named, slot = Named(Clock()), working(JobKind.CALLS)
    assert named.due(held(1), [slot], 1.0, anew=False) == {JOB}
    assert named.due(held(2), [slot], 1.0, anew=False) == {JOB}
