"""What an agent says of a slot that runs a long task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fallow.agent.slot import TIED_AFTER_S, Slot
from fallow.agent.slot_effects import Held
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, GpuSpec, JobKind, JobSpec, Resources
from fallow.wire.messages import Lease

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
