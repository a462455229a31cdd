"""Who is silent for too long, of many that speak now and then: each is looked at when it may be, and not with every
look at the clock, which would cost a coordinator of ten thousand nodes a tenth of its time and every lease a wait."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from fallow.model.ids import NodeId

Presence = Callable[[NodeId], tuple[float, float] | None]
"""When a node was heard of last, and how often it is to speak, in seconds; None: it is nobody's concern any more."""


class Silences:
    """`limit_s`: how long a node may be silent, by how often it is to speak. All times are seconds of the caller."""

    def __init__(self, limit_s: Callable[[float], float], presence: Presence) -> None:
        self._limit_s = limit_s
        self._presence = presence
        self._heap: list[tuple[float, NodeId]] = []
        self._due: dict[NodeId, float] = {}
        """Which of a node's entries in the heap counts."""

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._due

    def watch(self, node_id: NodeId) -> None:
        """It was heard of, for the first time or after `take` named it, or is to speak more often from now on."""
        presence = self._presence(node_id)
        if presence is None:
            return
        due = presence[0] + self._limit_s(presence[1])
        if due < self._due.get(node_id, float("inf")):
            self._due[node_id] = due
            heappush(self._heap, (due, node_id))

    def take(self, now: float) -> list[NodeId]:
        """Those that are silent for too long. Each is named once, until it is watched again."""
        found = []
        while self._heap and self._heap[0][0] < now:
            due, node_id = heappop(self._heap)
            if self._due.get(node_id) != due:
                continue
            presence = self._presence(node_id)
            if presence is None:
                del self._due[node_id]
                continue
            due = presence[0] + self._limit_s(presence[1])
            if due < now:
                del self._due[node_id]
                found.append(node_id)
            else:
                self._due[node_id] = due
                heappush(self._heap, (due, node_id))
        return found
