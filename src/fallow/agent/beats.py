"""What a node says of itself, beat by beat."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fallow.agent.leases import leases_by_job
from fallow.agent.named import Named
from fallow.agent.probe import load_average, memory_used_bytes
from fallow.wire import subjects
from fallow.wire.messages import Beat, Held

if TYPE_CHECKING:
    from fallow.agent.node import Node
    from fallow.agent.rhythm import Rhythm
    from fallow.model.ids import JobId

REST_READ_S = 60.0
"""What the machine has to do is read so seldom at rest: reading it touches much that could sleep on."""


class Beats:
    """Of one node."""

    def __init__(self, node: Node, rhythm: Rhythm) -> None:
        self._node, self._rhythm = node, rhythm
        self._named = Named(time.monotonic)
        self._read_s = float("-inf")
        self._load = 0.0
        self._memory_used_bytes = 0

    def next(self, now: float, tells_spec: bool, draining: bool) -> Beat:
        """It is sent now (seconds, monotonic)."""
        node, at_rest = self._node, self._rhythm.at_rest
        if not at_rest or now - self._read_s >= REST_READ_S:
            self._read_s, self._load, self._memory_used_bytes = now, load_average(), memory_used_bytes()
        return Beat(
            node_id=node.node_id,
            session=node.session,
            seq=self._rhythm.beats(now),
            slots=tuple(slot.state() for slot in node.slots),
            busy=0 if at_rest else sum(1 for slot in node.slots if slot.is_busy),
            load=self._load,
            memory_used_bytes=self._memory_used_bytes,
            draining=draining,
            spec=node.spec if tells_spec else None,
            interval_s=self._rhythm.interval_s,
            paused=node.paused or node.fullness.words,
            withheld=node.gpus.withheld,
        )

    def tell_owners(
        self, gone: bool = False, only: JobId | None = None, *, anew: bool = False, beat: bool = False
    ) -> None:
        """Name to the owner of each job (or of one) what this node holds of it; with a beat, where it is news."""
        node, interval_s = self._node, self._rhythm.interval_s
        held_by_job = leases_by_job(node.slots, node.outbox)
        due = self._named.due(held_by_job, node.slots, interval_s, anew) if beat else held_by_job
        for job_id, leases in held_by_job.items():
            if job_id in due and only in (None, job_id):
                held = Held(job_id, node.node_id, node.name, node.session, leases, gone, interval_s, anew)
                node.send(subjects.job(job_id), held)
