"""What other programs do with each GPU that is lent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import psutil

from fallow.agent.owner.sensor import Draft, Sensor
from fallow.core.owner_readings import GpuReading

GpuUse = Callable[[Collection[int]], dict[str, tuple[float | None, int | None]]]
"""Of what is not among these processes: share of use and bytes of memory, by uuid; None: cannot be read."""


class ForeignGpus(Sensor):
    name = "use of the GPUs"
    every_s = 1.0

    def __init__(self, uuids: Iterable[str], use: GpuUse, roots: Callable[[], Iterable[int]]) -> None:
        self._uuids, self._use, self._roots = tuple(uuids), use, roots

    def unknown(self, draft: Draft) -> None:
        draft.gpus = {uuid: GpuReading(None, None) for uuid in self._uuids}

    def read(self, draft: Draft) -> None:
        found = self._use(own_processes(self._roots()))
        draft.gpus = {uuid: GpuReading(*found.get(uuid, (None, None))) for uuid in self._uuids}


def own_processes(roots: Iterable[int]) -> frozenset[int]:
    """The roots and all that descends from them."""
    found: set[int] = set()
    for root in roots:
        try:
            found |= {root, *(child.pid for child in psutil.Process(root).children(recursive=True))}
        except psutil.Error:
            continue
    return frozenset(found)
