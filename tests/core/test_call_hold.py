"""Slots are kept between calls that come one after the other, for a moment after the last, and from nobody who is
short."""

from __future__ import annotations

from fallow.core.call_hold import KEPT_S, PEAK_S, CallHold
from fallow.core.demand import JobDemand, NodeView, in_last_turn
from fallow.core.matching import plan
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.node import NodeSpec


def test_a_slot_is_kept_between_two_calls() -> None:
    hold = CallHold()
    assert hold.look(1, 1, 0.0) == 1
    assert hold.look(9, 0, 1.0) == 1, "calls came since"
    assert hold.look(9, 0, 1.0 + KEPT_S / 2) == 1
    assert hold.look(14, 0, 2.1) == 1
    assert hold.look(14, 0, 2.2 + KEPT_S) == 0, "nobody calls any more"


def test_it_is_kept_after_a_call_that_waited_however_seldom_plans_are_made() -> None:
    hold = CallHold()
    assert hold.look(1, 1, 0.0) == 1
    assert hold.look(1, 0, 20.0) == 1, "it was answered some time between: perhaps just now"
    assert hold.look(1, 0, 20.1 + KEPT_S) == 0


def test_a_call_by_itself_keeps_nothing_for_long() -> None:
    hold = CallHold()
    assert hold.look(1, 1, 0.0) == 1
    assert hold.look(1, 0, 0.01) == 1
    assert hold.look(1, 0, 1.0) == 0


def test_as_many_are_kept_as_were_wanted_at_once_of_late() -> None:
    hold = CallHold()
    assert hold.look(5, 5, 0.0) == 5
    assert hold.look(6, 1, 0.5) == 5
    assert hold.look(7, 1, PEAK_S) == 1


def test_what_is_kept_is_taken_from_nobody_who_is_short() -> None:
    def job(name: str, kind: JobKind, want: int, served: float) -> JobDemand:
        spec = JobSpec(JobId(name), name, kind, ClientId("c"), Blob(Digest(""), 0, b""))
        return JobDemand(spec, want, served, order=0 if kind is JobKind.CALLS else 1)

    def slots_of_calls(slots: int) -> int:
        node = NodeSpec(NodeId("n"), "n", slots, slots, 8 << 30, 1 << 40, "linux", ("3.11",), "0.1")
        jobs = [job("calls", JobKind.CALLS, 1, in_last_turn(0.0)), job("map", JobKind.MAP, 10, 100.0)]
        view = NodeView(node, {0: JobId("calls"), **dict.fromkeys(range(1, slots), JobId("map"))})
        return plan(jobs, [view]).shares.get(JobId("calls"), 0)

    assert [slots_of_calls(1), slots_of_calls(2)] == [0, 1]
