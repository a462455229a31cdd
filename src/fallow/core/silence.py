"""Who is silent for too long, of many that speak now and then: each is looked at when it may be, and not with every
look at the clock, which would cost a coordinator of ten thousand nodes a tenth of its time and every lease a wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fallow.model.ids import NodeId

EndOfPatience = Callable[[NodeId], float | None]
"""Until when a node may be silent, by when it was heard of last and how often it is to speak; None: it is nobody's
concern any more."""

STEP_S = 0.05
"""What falls due within one step is looked at together, when it is over."""


class Silences:
    """All times are seconds of the caller."""

    def __init__(self, ends: EndOfPatience) -> None:
        self._ends = ends
        self._steps: dict[int, list[NodeId]] = {}
        self._step_of: dict[NodeId, int] = {}
        """In which of its places a node counts."""

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._step_of

    def watch(self, node_id: NodeId) -> None:
        """It was heard of, for the first time or after `take` named it, or is to speak more often from now on."""
        end = self._ends(node_id)
        if end is not None:
            step = int(end / STEP_S)
            before = self._step_of.get(node_id)
            if before is None or step < before:
                self._put(node_id, step)

    def take(self, now: float) -> list[NodeId]:
        """Those that are silent for too long, and for a step more. Each is named once, until it is watched again."""
        found = []
        present = int(now / STEP_S)
        for step in sorted(step for step in self._steps if step < present):
            for node_id, due in self._emptied(step):
                if due < present:
                    del self._step_of[node_id]
                    found.append(node_id)
                else:
                    self._put(node_id, due)
        return found

    def next_s(self, before: float) -> float | None:
        """When `take` would name somebody if nothing more is heard, where that is before then; else None."""
        for step in sorted(step for step in self._steps if (step + 1) * STEP_S < before):
            for node_id, due in self._emptied(step):
                self._put(node_id, max(step, due))
            if step in self._steps:
                return (step + 1) * STEP_S
        return None

    def _emptied(self, step: int) -> Iterator[tuple[NodeId, int]]:
        """Who counts in this step, and the one in which each falls due by now; nobody is in it any more."""
        for node_id in self._steps.pop(step):
            if self._step_of.get(node_id) != step:
                continue
            end = self._ends(node_id)
            if end is None:
                del self._step_of[node_id]
            else:
                yield node_id, int(end / STEP_S)

    def _put(self, node_id: NodeId, step: int) -> None:
        self._step_of[node_id] = step
        places = self._steps.get(step)
        if places is None:
            self._steps[step] = [node_id]
        else:
            places.append(node_id)
