"""What an agent says of a slot that runs a long task."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fallow.agent.slot import TIED_AFTER_S, WAITED_S, Slot
from fallow.agent.slot_effects import Held
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, GpuSpec, JobKind, JobSpec, Resources
from fallow.wire.messages import HandIn, Lease

JOB = JobId("job-a")
SPEC = JobSpec(JOB, "a", JobKind.MAP, ClientId("c"), Blob(Digest(""), 0, b""))


def slot_running(spec: JobSpec, index: int, elapsed_s: float) -> Slot:
    node: Any = SimpleNamespace(node_id=NodeId("n"), jobs={JOB: SimpleNamespace(spec=spec)})
    slot = Slot(node, 0)
    lane = slot.machine.lanes.at(0)
    assert lane is not None
    lane.held = Held(Lease(JOB, 1, (1, 1), 0, 1, 0, 10, 1.5, ()))
    slot.lanes[0].progress = lambda held: (index, elapsed_s)  # type: ignore[method-assign]
    return slot


def test_a_slot_is_tied_to_the_job_of_a_long_task_alone() -> None:
    assert slot_running(SPEC, 3, TIED_AFTER_S + 1.0).state().tied_to == JOB
    assert slot_running(SPEC, 3, TIED_AFTER_S - 1.0).state().tied_to is None
    assert slot_running(SPEC, -1, TIED_AFTER_S + 1.0).state().tied_to is None, "nothing has begun"


def test_a_slot_that_is_lent_or_whose_lease_is_revoked_is_not_tied() -> None:
    slot = slot_running(SPEC, 3, TIED_AFTER_S + 1.0)
    lane = slot.machine.lanes.at(0)
    assert lane is not None
    assert lane.held is not None
    lane.waiting = 1
    assert slot.state().tied_to is None
    lane.waiting = 0
    lane.held.revoked = True
    assert slot.state().tied_to is None


@pytest.mark.parametrize(
    "spec",
    [
        msgspec.structs.replace(SPEC, resources=Resources(cpu=2)),
        msgspec.structs.replace(SPEC, resources=Resources(gpu=GpuSpec(count=1))),
        msgspec.structs.replace(SPEC, max_nodes=1),
    ],
)
def test_what_the_matcher_counts_by_assignment_is_left_to_it(spec: JobSpec) -> None:
    assert slot_running(spec, 3, TIED_AFTER_S + 1.0).state().tied_to is None


def test_a_lease_whose_inputs_are_long_in_coming_leaves_the_slot_to_another_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As while the blob store is away: calls of another job are not to wait for it."""
    slot = slot_running(SPEC, -1, 0.0)
    lane = slot.machine.lanes.at(0)
    assert lane is not None
    assert lane.held is not None
    held = lane.held
    slot.lanes[0].waiting = held
    sent: list[Any] = []
    slot.node.outbox = SimpleNamespace(  # type: ignore[assignment]
        add=lambda hand_in, files: sent.append(hand_in), is_blocked=lambda job_id, token: False
    )
    slot.node.send = lambda subject, message: sent.append(message)  # type: ignore[method-assign]
    slot.node.pages = SimpleNamespace(named=lambda job_id: ())  # type: ignore[assignment]
    paths: list[dict[int, str] | None] = [None]
    monkeypatch.setattr(slot, "paths_of", lambda held: paths[0])
    now = time.monotonic()

    slot.machine.spec = SPEC
    lane.began_s = now - 60.0
    slot._give_back_what_waits()
    assert lane.held is held, "the slot is the job's own: it waits"

    slot.machine.spec = msgspec.structs.replace(SPEC, job_id=JobId("job-b"))
    lane.began_s = now - WAITED_S / 2
    slot._give_back_what_waits()
    assert lane.held is held, "inputs may come at any moment"
    lane.began_s = now - 60.0
    paths[0] = {0: "/page"}
    slot._give_back_what_waits()
    assert lane.held is held, "they are here: it is the worker that is waited for"

    paths[0] = None
    slot._give_back_what_waits()
    assert lane.held is None
    assert slot.lanes[0].waiting is None
    [back] = [message for message in sent if isinstance(message, HandIn)]
    assert (back.job_id, back.start, back.stop, back.results) == (JOB, 0, 10, ())
    assert back.ended
