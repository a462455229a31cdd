"""Slots that change places: whose job waits behind another's task gets the slot of the node that is free first.

The pool gives a job one certain slot, before anybody knows which of them ends its task first: a call beside a map of
long tasks would wait for half a task on average, however many slots its node has. Slots of one node are alike, but for
devices and for jobs that take several, so that two may simply change their jobs. The next beat says so, and the
leader takes it as it is (coordinator.nodes).
"""

from __future__ import annotations

from collections.abc import Iterable

from fallow.agent.slot_effects import Held
from fallow.agent.slot_state import SlotMachine
from fallow.model.job import JobSpec


def is_behind(machine: SlotMachine) -> bool:
    """Whether its job waits for the end of another job's task."""
    active = machine.lanes.active
    if machine.spec is None or active is None or active.held is None or machine.lanes.lent_count:
        return False
    return active.held.job_id != machine.job_id


def to_exchange(machine: SlotMachine, ended: Held, others: Iterable[SlotMachine]) -> SlotMachine | None:
    """Which of the others gets this slot's job for its own, now that this one has ended a lease."""
    if not _may_change(machine) or machine.job_id != ended.job_id or machine.lanes.lent_count:
        return None
    for other in others:
        if is_behind(other) and other.is_prepared and other.job_id != machine.job_id and _may_change(other):
            return other
    return None


def _may_change(machine: SlotMachine) -> bool:
    return machine.spec is not None and not machine.is_shut and _is_plain(machine.spec)


def _is_plain(spec: JobSpec) -> bool:
    return spec.resources.cpu <= 1 and not spec.resources.gpu.count
