"""The room on the blobs' disk as it was seen last, less what has come since."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from fallow.core.quantities import size_words
from fallow.core.room import LOOK_LEAST_S, ORPHANS_KEPT_S, Room
from fallow.model.ids import JobId

log = logging.getLogger(__name__)

SOON_S = 0.5
"""What a job brings in this time is not worth looking before."""


class DiskRoom:
    """`look` looks at the disk, and may block: here that is done once, when it is first asked for; else in a thread by
    somebody who says so before (`looks`) and after (`seen`). Whoever hears of a blob says what it takes (`took`)."""

    def __init__(self, look: Callable[[], Room | None] = lambda: None) -> None:
        self._look = look
        self._seen: Room | None = None
        self._took = 0
        self._took_before = 0
        self._was_full = False
        self._promised: dict[JobId, float] = {}
        """What results will take of tasks that are leased, by job."""
        self._was_looked_at = False

    @property
    def room(self) -> Room | None:
        """None where it is not known."""
        seen = self._seen
        return Room(max(0, seen.free - self._took), seen.total) if seen is not None and self._took else seen

    def took(self, size: int) -> None:
        self._took += size

    def looks(self) -> None:
        self._took_before = self._took

    def seen(self, room: Room | None) -> None:
        self._took -= self._took_before
        self._took_before = 0
        self._seen = room
        self._was_looked_at = True
        # (By two bounds, so that it is not said again and again.)
        is_full = room is not None and not room.takes_inputs(room.inputs_leave // 2 if self._was_full else 0)
        if room is not None and is_full != self._was_full:
            self._was_full = is_full
            if is_full:
                log.warning(
                    "the disk of the blobs is nearly full: %s of %s are free. Large inputs, and tasks with large "
                    "results, wait until something was read or deleted",
                    size_words(room.free),
                    size_words(room.total),
                )
            else:
                log.warning("the disk of the blobs has room again: %s are free", size_words(room.free))

    # ------------------------------------------------------------ what follows

    @property
    def is_short(self) -> bool:
        room = self.room
        return room is not None and room.is_short

    @property
    def look_again_s(self) -> float:
        if self._seen is None:
            return SOON_S if not self._was_looked_at else 1e9
        return max(LOOK_LEAST_S, self._seen.look_again_s)

    def garbage_kept_s(self, after_s: float, least_s: float) -> float:
        """`after_s`: where it is not known how much room there is."""
        room = self.room
        return room.garbage_kept_s(least_s) if room is not None else after_s

    @property
    def orphans_kept_s(self) -> float:
        room = self.room
        return room.orphans_kept_s if room is not None else ORPHANS_KEPT_S

    def result_tasks(self, job_id: JobId, task_bytes: float, leased: int) -> int | None:
        """How many more tasks of the job may be leased, of which `leased` are; None: as many as anyone likes."""
        if task_bytes <= 0.0:
            return None
        if not self._was_looked_at:
            with contextlib.suppress(OSError):
                self.seen(self._look())
        room = self.room
        if room is None:
            return None
        self._promised[job_id] = leased * task_bytes
        return room.result_tasks(task_bytes, sum(self._promised.values()))

    def forget(self, job_id: JobId) -> None:
        """Nothing of the job is leased any more."""
        self._promised.pop(job_id, None)
