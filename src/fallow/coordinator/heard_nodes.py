"""The nodes that work for one job: when each was heard of last, and who is silent for too long."""

from __future__ import annotations

from collections.abc import Callable

from fallow.core.presence import LEAST_INTERVAL_S, lost_after_s, quiet_after_s
from fallow.core.silence import Silences
from fallow.model.ids import NodeId


class HeardNodes:
    """All times are the loop's, in seconds."""

    def __init__(self) -> None:
        self.seen: dict[NodeId, float] = {}
        self._intervals_s: dict[NodeId, float] = {}
        """How often nodes beat, by their own word."""
        self._quiet = Silences(lambda node_id: self._end(node_id, quiet_after_s))
        self._silent = Silences(lambda node_id: self._end(node_id, lost_after_s))

    def hear(self, node_id: NodeId, now: float, is_back: bool) -> bool:
        """It spoke. Returns whether that is news: it is a new one, or (`is_back`) may have been given up."""
        is_news = is_back or node_id not in self.seen
        self.seen[node_id] = now
        if is_news:
            self._quiet.watch(node_id)
            self._silent.watch(node_id)
        return is_news

    def beats_every(self, node_id: NodeId, interval_s: float) -> None:
        is_oftener = interval_s < self._interval_s(node_id)
        self._intervals_s[node_id] = interval_s
        if is_oftener:
            self._quiet.watch(node_id)
            self._silent.watch(node_id)

    def longest_interval_s(self) -> float:
        """Between two beats of a node."""
        return max(self._intervals_s.values(), default=LEAST_INTERVAL_S)

    def quiet(self, now: float) -> list[NodeId]:
        """Those that may be gone; each is named once, until `hear` is told that it is back."""
        return self._quiet.take(now)

    def lost(self, now: float) -> list[tuple[NodeId, float]]:
        """(node, after how long that is) of those that have been silent for too long."""
        return [(node_id, lost_after_s(self._interval_s(node_id))) for node_id in self._silent.take(now)]

    def next_s(self, before: float) -> float | None:
        """When `quiet` or `lost` would name a node that is not heard of until then, if that is before `before`."""
        dues = (self._quiet.next_s(before), self._silent.next_s(before))
        return min((due for due in dues if due is not None), default=None)

    def forget(self, node_id: NodeId) -> None:
        self.seen.pop(node_id, None)
        self._intervals_s.pop(node_id, None)

    def _interval_s(self, node_id: NodeId) -> float:
        return self._intervals_s.get(node_id, LEAST_INTERVAL_S)

    def _end(self, node_id: NodeId, after_s: Callable[[float], float]) -> float | None:
        seen = self.seen.get(node_id)
        return seen + after_s(self._interval_s(node_id)) if seen is not None else None
