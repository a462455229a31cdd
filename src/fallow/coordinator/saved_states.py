"""What the tasks of one job have saved of their state: bytes that nobody here looks into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fallow.coordinator.blob_refs import BlobRefs
from fallow.core.progress import Progress
from fallow.model.ids import Interval
from fallow.model.job import Blob
from fallow.wire.messages import SaveCheckpoint

LEASE_BYTES = 1 << 20
"""Inline bytes of saved states that one lease carries. What is beyond that begins anew: so many tasks that have saved
their state, and yet are small enough for one lease, are short."""


def is_wanted(progress: Progress, message: SaveCheckpoint) -> bool:
    """The lease that saves stands; or none does for this task (after a take-over, until agents have named theirs)."""
    if progress.is_final or message.index in progress.done:
        return False
    lease = progress.leases.get((message.token[0], message.token[1]))
    if lease is not None:
        return message.index in lease.pending
    return not any(message.index in other.pending for other in progress.leases.values())


class SavedStates:
    """By task. Keeps those blobs alive that are in the blob store."""

    def __init__(self, blobs: BlobRefs) -> None:
        self._blobs = blobs
        self._states: dict[int, Blob] = {}

    def __len__(self) -> int:
        return len(self._states)

    def put(self, index: int, state: Blob, now: float) -> None:
        if state.data is None:
            self._blobs.add(state.digest)
        self._forget(index, now)
        self._states[index] = state

    def restore(self, states: Mapping[int, Blob], progress: Progress, now: float) -> None:
        """From the store."""
        for index, state in states.items():
            if index not in progress.done:
                self.put(index, state, now)

    def drop(self, ranges: Iterable[Interval], now: float) -> list[Interval]:
        """These tasks are done. Returns those of the ranges that held any state."""
        held = []
        for start, stop in ranges:
            gone = range(start, stop) if stop - start < len(self._states) else list(self._states)
            gone = [index for index in gone if index in self._states and start <= index < stop]
            for index in gone:
                self._forget(index, now)
            if gone:
                held.append((start, stop))
        return held

    def of(self, start: int, stop: int) -> tuple[tuple[int, Blob], ...]:
        """For a lease of these tasks."""
        found, left = [], LEASE_BYTES
        for index in sorted(index for index in self._states if start <= index < stop):
            left -= len(self._states[index].data or b"")
            if left < 0:
                break
            found.append((index, self._states[index]))
        return tuple(found)

    def release(self) -> None:
        """Another coordinator owns the job now."""
        for state in self._states.values():
            if state.data is None:
                self._blobs.release(state.digest)
        self._states.clear()

    def _forget(self, index: int, now: float) -> None:
        old = self._states.pop(index, None)
        if old is not None and old.data is None:
            self._blobs.drop(old.digest, now)
