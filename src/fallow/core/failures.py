"""Tasks that did not simply succeed: suspects of a worker's death, attempts so far, and retries that wait.

A task in progress when its worker died runs alone, elsewhere where there is an elsewhere; after two lone deaths it is
poison. Timeouts count against the customer's retries; deaths, lost nodes and full disks do not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from fallow.core.lease import Delayed, Suspect
from fallow.model.ids import NodeId
from fallow.model.job import RetryPolicy
from fallow.model.parts import Death

LONE_DEATHS_LIMIT = 2
"""Deaths alone after which a task is poison."""
MEMORY_DEATHS_LIMIT = 2
FULL_NODES_LIMIT = 5
"""Nodes that had no room for a task's result, after which it is failed; or one that has not, twice."""
NODE_LOSSES_LIMIT = 5
"""Nodes lost under one task after which it is failed."""
DELAYED_LIMIT = 100_000


class FailureBook:
    """What is remembered of troubled tasks until they are done."""

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self.suspects: dict[int, Suspect] = {}
        self.waiting: list[int] = []
        """Suspects that are to run alone, in order."""
        self.attempts: dict[int, int] = {}
        self.delayed: list[Delayed] = []
        """Heap of tasks that are not to run before a time."""

    def died(self, death: Death, *, alone: bool, attempt: int, node: NodeId, now: float, runs_on: bool = False) -> str:
        """A worker ended under this task. Returns what is to become of it: 'fault' (it has failed for good),
        'delayed' (in `delayed` now), 'suspect' (in `waiting` now) or 'runs_on' (another copy of it runs)."""
        index = death.index
        if death.kind == "timeout":
            tried = self.attempts.get(index, attempt) + 1
            if tried > self._retry.retries:
                return "fault"
            self.delay(index, tried, now + self._retry.delay_s(tried))
            return "delayed"
        suspect = self.suspects.setdefault(index, Suspect(index))
        if death.kind == "no_room":
            if node in suspect.full_nodes or len(suspect.full_nodes) + 1 >= FULL_NODES_LIMIT:
                return "fault"
            suspect.full_nodes.add(node)
        else:
            suspect.nodes.add(node)
            if death.kind == "memory":
                suspect.memory_deaths += 1
                if suspect.memory_deaths >= MEMORY_DEATHS_LIMIT or alone:
                    return "fault"
            elif alone:
                suspect.lone_deaths += 1
                if suspect.lone_deaths >= LONE_DEATHS_LIMIT:
                    return "fault"
        if runs_on:
            return "runs_on"
        self.waiting.append(index)
        return "suspect"

    def node_lost(self, index: int) -> int:
        """A node was lost while it ran this task: how often that has happened to it."""
        suspect = self.suspects.setdefault(index, Suspect(index))
        suspect.node_losses += 1
        return suspect.node_losses

    def delay(self, index: int, attempt: int, not_before: float) -> None:
        heapq.heappush(self.delayed, Delayed(not_before, index, attempt))

    @property
    def is_crowded(self) -> bool:
        """Whether so many tasks wait for their retry that the next ones are to run at once."""
        return len(self.delayed) >= DELAYED_LIMIT

    def due(self, now: float) -> list[int]:
        """Delayed tasks whose time has come; their attempt is remembered."""
        found = []
        while self.delayed and self.delayed[0].not_before <= now:
            task = heapq.heappop(self.delayed)
            self.attempts[task.index] = task.attempt
            found.append(task.index)
        return found

    def take_waiting(self, node: NodeId, idle_nodes: set[NodeId], busy_nodes: Callable[[], set[NodeId]]) -> int | None:
        """The first suspect that has not died on this node; one that has, if no other node is idle. One for whose
        result it had no room, if no other node is there, idle or busy."""
        for at, index in enumerate(self.waiting):
            suspect = self.suspects[index]
            if node in suspect.nodes and not idle_nodes <= suspect.nodes:
                continue
            if node in suspect.full_nodes and not idle_nodes | busy_nodes() <= suspect.full_nodes:
                continue
            del self.waiting[at]
            return index
        return None

    def settled(self, start: int, stop: int) -> None:
        """These tasks are done: forget them."""
        if self.waiting:
            self.waiting = [i for i in self.waiting if not start <= i < stop]
        if self.delayed and any(start <= d.index < stop for d in self.delayed):
            self.delayed = [d for d in self.delayed if not start <= d.index < stop]
            heapq.heapify(self.delayed)
        _forget(self.suspects, start, stop)
        _forget(self.attempts, start, stop)

    def __bool__(self) -> bool:
        return bool(self.suspects or self.attempts or self.delayed)


def _forget(marks: dict[int, Any], start: int, stop: int) -> None:
    """Delete the keys in [start, stop), in the time of the smaller of both."""
    if not marks:
        return
    keys = [i for i in marks if start <= i < stop] if len(marks) < stop - start else range(start, stop)
    for index in keys:
        marks.pop(index, None)
