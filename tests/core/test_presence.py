"""Beats and leases for crowds: what a coordinator is asked to take stays within bounds as nodes grow."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fallow.core.effects import Drop, Grant, Record
from fallow.core.job import JobProgress
from fallow.core.presence import (
    BEATS_PER_S,
    MOST_INTERVAL_S,
    REST_INTERVAL_S,
    beat_interval_s,
    lost_after_s,
    quiet_after_s,
)
from fallow.core.silence import Silences
from fallow.core.sizing import MAP_TARGET_S, budget_s, target_s
from fallow.model.ids import ClientId, Digest, JobId, NodeId, SlotKey
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.parts import HeldLease, ResultPage
from fallow.wire.messages import BEAT_INTERVAL_S, NODE_LOST_AFTER_S


@pytest.mark.parametrize("nodes", [0, 1, 300, 1_000])
def test_a_small_pool_beats_every_second(nodes: int) -> None:
    assert beat_interval_s(nodes) == BEAT_INTERVAL_S
    assert lost_after_s(beat_interval_s(nodes)) == NODE_LOST_AFTER_S


def test_beats_of_a_large_pool_stay_within_what_one_coordinator_takes() -> None:
    for nodes in (2_000, 5_000, 10_000, 30_000):
        assert nodes / beat_interval_s(nodes) == pytest.approx(BEATS_PER_S)
    assert beat_interval_s(1_000_000) == MOST_INTERVAL_S


def test_a_dead_machine_is_noticed_soon_and_a_lost_beat_kills_nobody() -> None:
    interval_s = beat_interval_s(10_000)
    assert lost_after_s(interval_s) <= 25.0
    for each_s in (1.0, interval_s, MOST_INTERVAL_S):
        assert lost_after_s(each_s) >= 2 * each_s + 2.0


def test_what_a_node_says_of_its_beats_is_bounded() -> None:
    assert lost_after_s(1e9) == lost_after_s(MOST_INTERVAL_S) < 65.0
    assert lost_after_s(-1.0) == NODE_LOST_AFTER_S
    assert lost_after_s(1e9, rests=True) < 37.0


def test_a_node_at_rest_is_not_waited_for_twice() -> None:
    assert quiet_after_s(REST_INTERVAL_S, rests=True) < 13.0 < quiet_after_s(REST_INTERVAL_S)
    assert REST_INTERVAL_S + 5.0 < lost_after_s(REST_INTERVAL_S, rests=True) < 17.0


def test_few_slots_get_leases_of_the_usual_length_whatever_their_number() -> None:
    assert {target_s(MAP_TARGET_S, 600, ordinal) for ordinal in range(50)} == {MAP_TARGET_S}


def test_leases_of_many_slots_are_longer_and_of_different_lengths() -> None:
    lengths = [target_s(MAP_TARGET_S, 10_000, ordinal) for ordinal in range(1_000)]
    assert sum(lengths) / len(lengths) == pytest.approx(25.0, rel=0.01)
    ordered = sorted(lengths)
    assert ordered[0] >= 0.75 * 25.0
    assert ordered[-1] <= 1.25 * 25.0
    gaps = [later - earlier for earlier, later in pairwise(ordered)]
    assert max(gaps) < 4 * 12.5 / 1_000, "hand-ins of slots that began together come in waves"


def test_a_lease_is_not_cut_short_of_what_it_was_to_be() -> None:
    assert budget_s(0.0) == budget_s(1.5) == 2.0
    assert budget_s(25.0) > 25.0


@pytest.mark.parametrize("speculate", [True, False])
def test_a_call_on_a_silent_node_runs_elsewhere_too_and_counts_once(speculate: bool) -> None:
    blob = Blob(Digest("00"), 1, b"x")
    spec = JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob, speculate=speculate)
    job = JobProgress(spec, 1)
    job.add_call(0, 1)
    one, other = (NodeId("one"), 0), (NodeId("two"), 0)

    def grants(slot: SlotKey, seq: int, now: float) -> list[Grant]:
        job.pull(slot, seq, True, ())
        return [effect for effect in job.dispatch(now) if isinstance(effect, Grant)]

    (first,) = grants(one, 1, 0.0)
    assert not job.doubt(2.0, 2.2)
    assert grants(other, 1, 2.0) == []
    assert job.doubt(2.3, 2.2) is speculate
    job.beat(one[0], (HeldLease(spec.job_id, first.token, 0, 0, 1, 0, 0.1),), 2.4)
    assert not job.doubt(2.5, 2.2), "it was heard of"
    assert job.doubt(4.7, 2.2) is speculate
    job.pull((NodeId("one"), 1), 1, True, ())
    granted = [effect for effect in job.dispatch(4.7) if isinstance(effect, Grant)]
    assert [grant.slot for grant in granted] == ([other] if speculate else []), "never on the silent node itself"
    job.check()
    if not speculate:
        return
    assert not job.doubt(5.0, 2.2), "a second run is enough"
    answer = ResultPage(0, 1, 0, blob)
    effects = job.hand_in(slot=other, token=granted[0].token, results=(answer,), ended=True, now=5.1)
    assert [type(effect) for effect in effects] == [Drop, Record], "the silent node is to stop"
    assert job.hand_in(slot=one, token=first.token, results=(answer,), ended=True, now=5.2) == []
    job.check()


def test_a_node_that_may_be_gone_gets_nothing_until_it_is_heard_of() -> None:
    blob = Blob(Digest("00"), 1, b"x")
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob), 1)
    one, other = (NodeId("one"), 0), (NodeId("two"), 0)
    job.pull(one, 1, True, ())
    job.pull(other, 1, True, ())
    job.node_quiet(one[0])
    job.add_call(0, 1)
    assert job.waits
    (grant,) = job.dispatch(12.3)
    assert isinstance(grant, Grant)
    assert grant.slot == other
    assert not job.waits
    job.add_call(1, 2)
    assert job.dispatch(12.4) == []
    job.node_quiet(other[0])
    assert job.waits, "what runs there may never end"
    job.node_heard(one[0])
    (grant,) = job.dispatch(12.5)
    assert isinstance(grant, Grant)
    assert (grant.slot, grant.pull_seq) == (one, 1)
    job.check()
    job.node_quiet(one[0])
    job.unpull(one, 1)
    job.node_heard(one[0])
    assert not job.pulls, "it was taken back meanwhile"


def test_each_silence_is_told_once_and_as_early_as_it_lasts_too_long() -> None:
    seen = {NodeId("often"): (10.0, 1.0), NodeId("seldom"): (9.0, 10.0)}

    def ends(node_id: NodeId) -> float | None:
        found = seen.get(node_id)
        return None if found is None else found[0] + quiet_after_s(found[1])

    quiet = Silences(ends)
    for node_id in seen:
        quiet.watch(node_id)
    assert quiet.take(12.1) == []
    assert quiet.take(12.3) == ["often"]
    assert quiet.take(12.4) == [], "that is known"
    seen[NodeId("often")] = (13.0, 1.0)
    assert quiet.take(20.0) == [], "it was not watched again"
    quiet.watch(NodeId("often"))
    assert quiet.take(20.0) == ["often"]
    seen[NodeId("seldom")] = (25.0, 1.0)
    quiet.watch(NodeId("seldom"))
    assert quiet.take(27.1) == []
    assert quiet.take(27.3) == ["seldom"], "it was to speak more often since"
    assert NodeId("seldom") not in quiet
    seen[NodeId("seldom")] = (28.0, 1.0)
    quiet.watch(NodeId("seldom"))
    del seen[NodeId("seldom")]
    assert quiet.take(1e9) == [], "it is nobody's concern any more"


def test_it_is_known_when_somebody_may_be_silent_for_too_long() -> None:
    one, two = NodeId("one"), NodeId("two")
    seen = {one: 10.0, two: 10.5}
    quiet = Silences(lambda node_id: seen[node_id] + quiet_after_s(1.0) if node_id in seen else None)
    for node_id in seen:
        quiet.watch(node_id)
    assert quiet.next_s(12.0) is None
    first = quiet.next_s(20.0)
    assert first is not None
    assert first == pytest.approx(10.0 + quiet_after_s(1.0), abs=0.1)
    assert quiet.take(first - 0.01) == [], "no sooner"
    assert quiet.take(first + 0.001) == [one]
    seen[two] = 12.0
    assert quiet.next_s(13.5) is None, "it was heard of meanwhile"
    last = quiet.next_s(20.0)
    assert last is not None
    assert last == pytest.approx(12.0 + quiet_after_s(1.0), abs=0.1)
    assert quiet.take(last + 0.001) == [two], "asking loses nobody"
    quiet.watch(one)
    del seen[one]
    assert quiet.next_s(1e9) is None


def test_ten_thousand_that_speak_in_time_cost_no_look_at_all_of_them() -> None:
    looked = 0
    seen = {NodeId(f"{number:05}"): number / 1_000 for number in range(10_000)}

    def ends(node_id: NodeId) -> float:
        nonlocal looked
        looked += 1
        return seen[node_id] + lost_after_s(10.0)

    lost = Silences(ends)
    for node_id in seen:
        lost.watch(node_id)
    looked, now = 0, 10.0
    while now < 70.0:
        now += 0.25
        for node_id in [node_id for node_id, at in seen.items() if now - at >= 10.0]:
            seen[node_id] = now
        assert lost.take(now) == []
        assert lost.next_s(now + 1.0) is None
    assert looked <= 3 * len(seen), "once for each time that it may be silent"


def test_a_lease_that_was_lost_on_its_way_is_sent_again_when_its_node_does_not_name_it() -> None:
    blob = Blob(Digest("00"), 1, b"x")
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), blob), 1)
    job.add_call(0, 1)
    slot = (NodeId("one"), 0)
    job.pull(slot, 7, True, (3,))
    (first,) = job.dispatch(10.0)
    assert isinstance(first, Grant)
    assert job.beat(slot[0], (), 10.1) == [], "it may still be on its way"
    assert job.beat(NodeId("two"), (), 10.5) == [], "another node has nothing to do with it"
    (again,) = job.beat(slot[0], (), 10.5)
    assert isinstance(again, Grant)
    assert (again.token, again.slot, again.pull_seq, again.start, again.stop) == (first.token, slot, 7, 0, 1)
    assert again.again, "inputs that the node has by now"
    assert again.held_pages == frozenset()
    assert job.beat(slot[0], (), 10.6) == [], "once for each time that it may take"
    (again,) = job.beat(slot[0], (), 10.6, anew=True)
    assert isinstance(again, Grant), "what was on its way to a connection that is gone is lost for certain"
    assert again.token == first.token
    held = HeldLease(job.spec.job_id, first.token, 0, 0, 1, 0, 0.1)
    assert job.beat(slot[0], (held,), 11.5) == []
    assert job.beat(slot[0], (), 16.0) == [], "unnamed for too long: it is to do again"
    job.pull(slot, 8, True, ())
    (anew,) = job.dispatch(16.0)
    assert isinstance(anew, Grant)
    assert anew.token != first.token
    assert not anew.again
    job.check()


@pytest.mark.parametrize(("interval_s", "doubled"), [(1.0, True), (25.0, False)])
def test_where_nodes_beat_seldom_an_old_beat_makes_no_task_seem_slow(interval_s: float, doubled: bool) -> None:
    blob = Blob(Digest("00"), 1, b"x")
    job = JobProgress(JobSpec(JobId("job-aaaaaa"), "test", JobKind.MAP, ClientId("client-a"), blob), 1)
    job.add_inputs(0, 3)
    job.end_inputs(3)
    one, other = (NodeId("one"), 0), (NodeId("two"), 0)

    def grant(slot: SlotKey, seq: int, now: float) -> list[Grant]:
        job.pull(slot, seq, True, ())
        return [effect for effect in job.dispatch(now) if isinstance(effect, Grant)]

    (first,) = grant(other, 1, 0.0)
    job.hand_in(
        slot=other,
        token=first.token,
        results=(ResultPage(0, 1, 0, blob),),
        ended=True,
        run_s=0.5,
        now=0.5,
    )
    (slow,) = grant(one, 1, 0.5)
    job.beat(
        one[0], (HeldLease(job.spec.job_id, slow.token, 0, slow.start, slow.stop, slow.start, 0.1),), 1.0, interval_s
    )
    (last,) = grant(other, 2, 1.0)
    job.hand_in(
        slot=other,
        token=last.token,
        results=(ResultPage(2, 3, 2, blob),),
        ended=True,
        run_s=0.5,
        now=1.5,
    )
    assert grant(other, 3, 1.5) == []
    assert bool(grant(other, 4, 12.0)) is doubled
    job.beat(
        one[0], (HeldLease(job.spec.job_id, slow.token, 0, slow.start, slow.stop, slow.start, 12.1),), 13.0, interval_s
    )
    grant(other, 5, 13.1)
    grant(other, 6, 14.1)
    assert job.doubled_count == 1, "a fresh beat says that the task is slow indeed"
