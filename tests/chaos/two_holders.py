"""Whether two nodes go on with the same tasks, each under a token that its owner lets live.

Tasks pass from node to node: one that was silent and comes back still names what another has by now, and is told to
stop. That takes a message. Two that go on naming the same tasks are both believed. A single task may run twice: owners
double the last ones, and calls on a node that is silent.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fallow.core.intervals import IntervalSet
from fallow.wire.messages import HandIn, Held, Revoke

BOTH_S = 2.5
"""So long both may name a task: two beats, and the order to stop."""
SILENT_S = 1.5
"""What was named longer ago may be held no more."""


@dataclass
class _Named:
    node: str
    start: int
    stop: int
    since: float
    last: float


class TwoHolders:
    """`now`, in all of this: seconds on one steady clock. Messages in the order in which they were heard."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._named: dict[str, dict[str, _Named]] = defaultdict(dict)
        self._over: dict[str, dict[str, IntervalSet]] = defaultdict(lambda: defaultdict(IntervalSet))
        """By job and token: what was handed in or given back of it."""
        self._told: set[tuple[str, str, str]] = set()

    def held(self, message: Held, now: float) -> None:
        named = self._named[message.job_id]
        tokens = {} if message.gone else {repr(tuple(lease.token)): lease for lease in message.leases}
        for token in [t for t, known in named.items() if known.node == message.node_id and t not in tokens]:
            del named[token]
        for token, lease in tokens.items():
            known = named.setdefault(token, _Named(message.node_id, lease.start, lease.stop, now, now))
            if now - known.last > SILENT_S:
                known.since = now
            known.start, known.last = max(known.start, lease.index), now
        for token in tokens:
            for other in [t for t in named if t != token]:
                self._compare(message.job_id, token, other, now)

    def hand_in(self, message: HandIn) -> None:
        token = repr(tuple(message.token))
        if message.ended:
            self._named[message.job_id].pop(token, None)
        over = self._over[message.job_id][token]
        for page in message.results:
            over.add(page.start, page.stop)
        for start, stop in message.give_back:
            over.add(start, stop)

    def revoke(self, message: Revoke, node: str) -> None:
        named = self._named[message.job_id]
        tokens = {repr(tuple(token)) for token in message.tokens}
        for token in [t for t, known in named.items() if known.node == node and (not tokens or t in tokens)]:
            del named[token]

    def _compare(self, job_id: str, token: str, other: str, now: float) -> None:
        one, two = self._named[job_id][token], self._named[job_id][other]
        if now - two.last > SILENT_S or now - max(one.since, two.since) <= BOTH_S:
            return
        both = IntervalSet([(max(one.start, two.start), min(one.stop, two.stop))])
        for each in (token, other):
            for start, stop in self._over[job_id][each]:
                both.remove(start, stop)
        key = (job_id, *sorted((token, other)))
        if len(both) > 1 and key not in self._told:
            self._told.add(key)  # type: ignore[arg-type]
            self.wrong.append(
                f"tasks {both.intervals()[:3]} of {job_id} are held by {one.node} under {token} and by {two.node} "
                f"under {other}, for {now - max(one.since, two.since):.1f} s by now"
            )
