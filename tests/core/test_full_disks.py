"""A task whose result had no room on its node's disk runs on another node, at no cost to the customer's retries."""

from __future__ import annotations

from fallow.core.effects import Effect, Grant, RecordFault
from fallow.core.job import JobProgress
from fallow.model.ids import ClientId, Digest, JobId, NodeId, SlotKey, Token
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.parts import Death

FULL, OTHER, THIRD = (NodeId(f"node-{name}") for name in ("full", "other", "third"))


class Job:
    """Single calls on nodes of one slot each."""

    def __init__(self, tasks: int) -> None:
        spec = JobSpec(JobId("job-aaaaaa"), "test", JobKind.CALLS, ClientId("client-a"), Blob(Digest("0" * 64), 0))
        self.job = JobProgress(spec, 1)
        self.job.add_inputs(0, tasks)
        self._seq = 0
        self.now = 0.0

    def pull(self, node: NodeId) -> Grant | None:
        self._seq += 1
        self.now += 1.0
        self.job.pull((node, 0), self._seq, True, ())
        grants = [effect for effect in self.job.dispatch(self.now) if isinstance(effect, Grant)]
        return next((grant for grant in grants if grant.slot[0] == node), None)

    def no_room(self, slot: SlotKey, token: Token, index: int) -> list[Effect]:
        deaths = (Death(index, "no_room", "the node could not keep a result"),)
        return self.job.hand_in(slot=slot, token=token, results=(), deaths=deaths, ended=True, now=self.now)


def test_it_runs_on_another_node_once_that_has_time() -> None:
    job = Job(2)
    busy, first = job.pull(OTHER), job.pull(FULL)
    assert busy is not None
    assert first is not None
    assert job.no_room(first.slot, first.token, first.start) == []
    assert job.pull(FULL) is None, "another node is there"
    assert job.job.worker_deaths == 0
    job.job.hand_in(slot=busy.slot, token=busy.token, results=(), give_back=((busy.start, busy.stop),), now=job.now)
    again = job.pull(OTHER)
    assert again is not None
    assert again.start == first.start


def test_with_nobody_else_it_is_tried_once_more_and_fails_in_words() -> None:
    job = Job(1)
    first = job.pull(FULL)
    assert first is not None
    assert job.no_room(first.slot, first.token, 0) == []
    second = job.pull(FULL)
    assert second is not None
    (fault,) = job.no_room(second.slot, second.token, 0)
    assert isinstance(fault, RecordFault)
    assert (fault.fault.index, fault.fault.kind) == (0, "no_room")
    assert "could not keep a result" in fault.fault.message


def test_it_is_not_carried_from_one_full_node_to_the_next_for_ever() -> None:
    job = Job(1)
    for number in range(4):
        grant = job.pull(NodeId(f"node-{number}"))
        assert grant is not None
        assert job.no_room(grant.slot, grant.token, 0) == []
    last = job.pull(THIRD)
    assert last is not None
    assert [type(effect) for effect in job.no_room(last.slot, last.token, 0)] == [RecordFault]
