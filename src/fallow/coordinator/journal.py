"""Group commit: effects are kept before anybody hears of them.

Operations queue up while a commit runs and go into the next one together, in order. Whoever needs to know gets a
callback on the event loop once its operations are durable. A full disk or an engine that is away stops nothing but
the journal: it tries again until it succeeds, and says meanwhile why new work is refused.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fallow.model.ids import JobId
from fallow.store.protocol import CreateJob, Op, OwnershipLost, Store, StoreError, StoreFull

log = logging.getLogger(__name__)

BATCH_OPS = 2000
BACKLOG_OPS = 50_000
"""Beyond this many waiting operations, new work is refused until the journal has caught up."""
RETRY_S = 0.5
GATHER_OPS = 40
"""What nobody waits for is written when there is so much of it, or after a while: see Gathering."""


@dataclass(frozen=True)
class Gathering:
    """For how long what nobody waits for is kept back (`wait_s`), once so many changes a second are written that it is
    worth while (`from_ops_s`)."""

    wait_s: float
    from_ops_s: float


SHARED = Gathering(0.1, 50.0)
"""An engine that several coordinators share: many of them, with few changes each, would else commit each by itself.
From GATHER_OPS / wait_s changes a second on, a change costs the same on one coordinator and on many."""
OWN = Gathering(0.02, 200.0)
"""A store of one's own: a commit is cheap, but the event loop waits for the interpreter while it is prepared."""

Callback = Callable[[], None]


class Journal:
    """The only writer of the store. `on_lost` is called on the loop with jobs that another coordinator owns now."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[Sequence[JobId]], None],
        *,
        gathering: Gathering = OWN,
    ) -> None:
        self._store = store
        self._loop = loop
        self._on_lost = on_lost
        self._gathering = gathering
        self._hurries = False
        """Somebody waits for something of what waits."""
        self._recent_ops = 0.0
        """Changes of about the last second."""
        self._recent_at = time.monotonic()
        self._waiting: list[tuple[Sequence[Op] | Callable[[], None], Callback | None]] = []
        self._waiting_ops = 0
        self._is_ripe = False
        """What waits is to be written now."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        self._withdrawals: list[tuple[JobId, Callable[[bool], None]]] = []
        self._condition = threading.Condition()
        self._closing = False
        self.trouble: StoreError | None = None
        """Why nothing can be written at the moment."""
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def append(
        self, ops: Sequence[Op], then: Callback | None = None, *, may_wait: bool = False, within_s: float = 0.0
    ) -> None:
        """Write these, then call `then` on the loop. `may_wait`: nobody misses it for a moment (Gathering). `within_s`:
        nor for so long. From the loop's thread."""
        is_late = within_s > 0.0
        if is_late:
            self._ripen_in(within_s)
        elif self._timer is not None:  # what it is set for is written with this
            self._timer.cancel()
            self._timer = None
        with self._condition:
            self._waiting.append((ops, then))
            self._waiting_ops += len(ops)
            if is_late and self._waiting_ops < GATHER_OPS:
                return
            sleeps, self._is_ripe = not self._is_ripe, True
            self._hurries = self._hurries or not may_wait
            if self._hurries or self._waiting_ops >= GATHER_OPS or sleeps:
                self._condition.notify()

    def run(self, action: Callable[[], None], then: Callback | None = None) -> None:
        """Do something with the store after everything that was appended before, then call `then` on the loop."""
        with self._condition:
            self._waiting.append((action, then))
            self._hurries = self._is_ripe = True
            self._condition.notify()

    def withdraw(self, job_id: JobId, then: Callable[[bool], None]) -> None:
        """While the store is full: forget everything of a job that is not in the store yet. `then` is called on the
        loop with whether that was so; otherwise the job is written by now, or will be."""
        with self._condition:
            self._withdrawals.append((job_id, then))
            self._hurries = True
            self._condition.notify()

    def _ripen_in(self, wait_s: float) -> None:
        due_s = self._loop.time() + wait_s
        if self._timer is not None:
            if self._timer_due_s <= due_s:
                return
            self._timer.cancel()
        self._timer, self._timer_due_s = self._loop.call_later(wait_s, self._ripen), due_s

    def _ripen(self) -> None:
        self._timer = None
        with self._condition:
            if self._waiting:
                self._is_ripe = True
                self._condition.notify()

    @property
    def refusal(self) -> tuple[str, str] | None:
        """(kind, words) while new work is to be refused."""
        trouble = self.trouble
        if isinstance(trouble, StoreFull):
            return "store_full", f"the pool's store is full and takes no new work until there is room: {trouble}"
        if trouble is not None:
            return "overloaded", f"the pool's store does not answer: {trouble}"
        if self._waiting_ops > BACKLOG_OPS:
            return "overloaded", f"{self._waiting_ops} changes wait to be written; try again in a moment"
        return None

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits (for at most that long) and end."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._is_ripe and not self._withdrawals and not self._closing:
                    self._condition.wait()
                self._gather()
                self._hurries = False
                self._withdraw([])
                if not self._waiting:
                    if self._closing:
                        return
                    continue
                batch: list[tuple[Sequence[Op], Callback | None]] = []
                action: tuple[Callable[[], None], Callback | None] | None = None
                count = 0
                taken = 0
                for what, then in self._waiting:
                    if count >= BATCH_OPS or (callable(what) and batch):
                        break
                    taken += 1
                    if callable(what):
                        action = (what, then)
                        break
                    batch.append((what, then))
                    count += len(what)
                del self._waiting[:taken]
                # What is left behind did not say for itself whether somebody waits.
                self._hurries = self._is_ripe = bool(self._waiting)
            if action is not None:
                self._act(*action)
            else:
                self._write(batch)
            with self._condition:
                self._waiting_ops -= count

    def _gather(self) -> None:
        """Wait for more of what may wait. Called with the condition's lock."""
        now = time.monotonic()
        self._recent_ops *= max(0.0, 1.0 - (now - self._recent_at))
        self._recent_at = now
        if self._recent_ops >= self._gathering.from_ops_s:
            self._condition.wait_for(
                lambda: self._hurries or self._closing or self._waiting_ops >= GATHER_OPS, self._gathering.wait_s
            )
        self._recent_ops += self._waiting_ops

    def _act(self, action: Callable[[], None], then: Callback | None) -> None:
        try:
            action()
        except StoreError as error:
            log.warning("an action of the journal failed: %s", error)
            return
        if then is not None:
            self._call(then)

    def _write(self, batch: list[tuple[Sequence[Op], Callback | None]]) -> None:
        lost: set[JobId] = set()
        while True:
            try:
                self._store.commit(
                    [op for ops, _ in batch for op in ops if not lost or getattr(op, "job_id", None) not in lost]
                )
            except OwnershipLost as error:
                if set(error.job_ids) <= lost:
                    raise
                fresh = tuple(job_id for job_id in error.job_ids if job_id not in lost)
                lost.update(fresh)
                self._call(partial(self._on_lost, fresh))
                continue
            except StoreError as error:
                if self.trouble is None:
                    log.warning("cannot write to the store, trying again: %s", error)
                self.trouble = error
                with self._condition:
                    if self._closing:
                        return
                    if not self._withdrawals:
                        self._condition.wait(RETRY_S)
                    self._withdraw(batch)
                continue
            break
        if self.trouble is not None:
            log.warning("the store takes writes again")
            self.trouble = None
        kept = [
            then
            for ops, then in batch
            if then is not None and not any(getattr(op, "job_id", None) in lost for op in ops)
        ]
        if kept:
            self._call(lambda: [then() for then in kept])

    def _withdraw(self, batch: list[tuple[Sequence[Op], Callback | None]]) -> None:
        """Take jobs that nobody is to know of out of what is being written (`batch`) and what waits. Only this
        thread writes, so that it knows what the store has. Called with the condition's lock."""
        asked, self._withdrawals = self._withdrawals, []
        for job_id, then in asked:
            created = any(_creates(entry[0], job_id) for entry in [*batch, *self._waiting])
            # An engine that did not answer may have written all the same; one that is full has not.
            withdrawn = created and isinstance(self.trouble, StoreFull)
            if withdrawn:
                batch[:] = [entry for entry in batch if not _concerns(entry[0], job_id)]
                gone = [what for what, _ in self._waiting if _concerns(what, job_id)]
                self._waiting_ops -= sum(len(what) for what in gone if not callable(what))
                self._waiting = [entry for entry in self._waiting if not _concerns(entry[0], job_id)]
            self._call(partial(then, withdrawn))

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            log.info("the event loop ended before a commit was told")


def _concerns(what: Sequence[Op] | Callable[[], None], job_id: JobId) -> bool:
    return not callable(what) and any(getattr(op, "job_id", None) == job_id or _creates([op], job_id) for op in what)


def _creates(what: Sequence[Op] | Callable[[], None], job_id: JobId) -> bool:
    return not callable(what) and any(isinstance(op, CreateJob) and op.spec.job_id == job_id for op in what)
