"""Lifecycles: each is an enum with one transition table; a pair that is missing raises."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class JobState(StrEnum):
    """open: inputs may still come; running: all inputs are known; the rest are final."""

    OPEN = "open"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self is not JobState.OPEN and self is not JobState.RUNNING


class JobEvent(StrEnum):
    END_INPUTS = "end_inputs"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY_FAILED = "retry_failed"


JOB_TRANSITIONS: Mapping[tuple[JobState, JobEvent], JobState] = {
    (JobState.OPEN, JobEvent.END_INPUTS): JobState.RUNNING,
    (JobState.OPEN, JobEvent.FAIL): JobState.FAILED,
    (JobState.OPEN, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.FINISH): JobState.SUCCEEDED,
    (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
    (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.SUCCEEDED, JobEvent.RETRY_FAILED): JobState.RUNNING,
}


class NodeState(StrEnum):
    ALIVE = "alive"
    DRAINING = "draining"
    LOST = "lost"
    LEFT = "left"


class NodeEvent(StrEnum):
    BEAT = "beat"
    DRAIN = "drain"
    RESUME = "resume"
    SILENCE = "silence"
    BYE = "bye"


NODE_TRANSITIONS: Mapping[tuple[NodeState, NodeEvent], NodeState] = {
    (NodeState.ALIVE, NodeEvent.BEAT): NodeState.ALIVE,
    (NodeState.ALIVE, NodeEvent.DRAIN): NodeState.DRAINING,
    (NodeState.ALIVE, NodeEvent.SILENCE): NodeState.LOST,
    (NodeState.ALIVE, NodeEvent.BYE): NodeState.LEFT,
    (NodeState.DRAINING, NodeEvent.BEAT): NodeState.DRAINING,
    (NodeState.DRAINING, NodeEvent.DRAIN): NodeState.DRAINING,
    (NodeState.DRAINING, NodeEvent.RESUME): NodeState.ALIVE,
    (NodeState.DRAINING, NodeEvent.SILENCE): NodeState.LOST,
    (NodeState.DRAINING, NodeEvent.BYE): NodeState.LEFT,
    (NodeState.LOST, NodeEvent.BEAT): NodeState.ALIVE,
    (NodeState.LOST, NodeEvent.BYE): NodeState.LEFT,
    (NodeState.LEFT, NodeEvent.BEAT): NodeState.ALIVE,
}


class InvalidTransition(AssertionError):
    """A programmer's error: an entity met an event that its lifecycle has no transition for."""


def job_transition(state: JobState, event: JobEvent, story: str) -> JobState:
    """Next state of a job; `story` (what is known of it) goes into the error."""
    try:
        return JOB_TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(f"job in state {state} cannot take {event}: {story}") from None


def node_transition(state: NodeState, event: NodeEvent, story: str) -> NodeState:
    """Next state of a node; `story` (what is known of it) goes into the error."""
    try:
        return NODE_TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(f"node in state {state} cannot take {event}: {story}") from None
