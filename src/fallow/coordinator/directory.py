"""The jobs of this coordinator: those in memory, and those that only the store remembers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fallow.coordinator.calls_job import CallsJob
from fallow.coordinator.context import Context
from fallow.coordinator.map_job import CLIENT_SILENT_S, MapJob
from fallow.coordinator.owned_job import OwnedJob
from fallow.coordinator.stored_info import info_of_stored
from fallow.model.ids import JobId, NodeId
from fallow.model.job import JobInfo, JobKind, JobSpec
from fallow.store.protocol import StoredJob, StoreError
from fallow.wire.messages import Handover, HeldLease, JobReport, Jobs, JobStatus, ListJobs, Msg, Refused

log = logging.getLogger(__name__)

KEEP_ENDED_S = 5.0
"""An ended job stays in memory this long after its client was last heard of; an attached one whose client has not
said that it has all results keeps them for as long as a client may be silent."""
UNREAD_S = 600.0
LIST_LIMIT = 1000
EPOCHS_LIMIT = 100_000
HANDED_EPOCHS = 2
"""One for the release, one for whoever takes the job up."""


def leases_of(handed: Handover | None, epoch: int) -> tuple[tuple[NodeId, HeldLease], ...] | None:
    """All leases of a job that was taken up under this epoch, where its last owner has said so. None: they are to be
    asked for. (Where another has owned it meanwhile, that one leased what the hand-over does not name.)"""
    return handed.leases if handed is not None and epoch == handed.epoch + HANDED_EPOCHS else None


class Directory:
    """Finding jobs by id, name or prefix; loading them from the store without blocking the loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.active: dict[JobId, OwnedJob] = {}
        self._epochs: dict[JobId, int] = {}
        self._taking: dict[JobId, asyncio.Task[bool]] = {}
        self._loading: dict[JobId, list[Callable[[], None]]] = {}
        self.on_loaded: Callable[[JobId], Any] | None = None
        self.on_added: Callable[[], None] = lambda: None
        """There is another job in memory."""

    def spec_of(self, job_id: JobId) -> JobSpec | None:
        owned = self.active.get(job_id)
        return owned.spec if owned is not None and not owned.progress.is_final else None

    def last_epoch(self, job_id: JobId) -> int:
        owned = self.active.get(job_id)
        return owned.epoch if owned is not None else self._epochs.get(job_id, 0)

    def add(self, owned: OwnedJob) -> None:
        self.active[owned.job_id] = owned
        self.on_added()
        self._epochs[owned.job_id] = owned.epoch
        while len(self._epochs) > EPOCHS_LIMIT:
            del self._epochs[next(iter(self._epochs))]

    def make(self, spec: JobSpec, epoch: int, *, adopt: bool = False) -> OwnedJob:
        kind = CallsJob if spec.kind is JobKind.CALLS else MapJob
        return kind(self._context, spec, epoch, adopt=adopt)

    def may_forget(self, owned: OwnedJob, now: float) -> bool:
        unread = isinstance(owned, MapJob) and not owned.spec.detached and len(owned.results) > 0
        return now - owned.client_seen > (CLIENT_SILENT_S if unread else KEEP_ENDED_S)

    def forget(self, job_id: JobId) -> OwnedJob | None:
        return self.active.pop(job_id, None)

    # ------------------------------------------------------------ from the store

    async def orphans(self) -> list[JobId]:
        """Jobs that have not ended and whose owner is dead (on a store of one's own: all that this process has not
        got)."""
        context = self._context
        if context.session.shared:
            found = await self._read(context.store.jobs_of_dead_owners, LIST_LIMIT)
            return [job_id for job_id, owner in found if owner]
        return [stored.spec.job_id for stored in await self._read(context.store.list_jobs, LIST_LIMIT * 10, True)]

    async def unread(self) -> list[JobId]:
        """Jobs that ended lately under an owner that is dead: somebody may be reading their results."""
        after = self._context.unix_s() - UNREAD_S
        found: list[JobId] = await self._read(self._context.store.unread_of_dead_owners, after, LIST_LIMIT)
        return found

    async def take(self, job_id: JobId, handed: Handover | None = None) -> bool:
        """Become the owner, unless another is. `handed`: what the last owner had out; without it, agents get a
        moment to name their leases. Asked for one job twice at a time, it is taken once."""
        if job_id in self.active:
            return True
        taking = self._taking.get(job_id)
        if taking is None:
            taking = self._taking[job_id] = self._context.loop.create_task(self._take(job_id, handed))
            taking.add_done_callback(lambda _: self._taking.pop(job_id, None))
        return await asyncio.shield(taking)

    async def _take(self, job_id: JobId, handed: Handover | None) -> bool:
        context = self._context
        present: StoredJob | None = await self._read(context.store.get_job, job_id)
        if present is None:
            return False
        force = not context.session.shared or present.state.is_final
        stored: StoredJob | None = await self._read(context.store.acquire_job, job_id, context.owner, force)
        if stored is None:
            return False
        leases = leases_of(handed, stored.epoch)
        owned = self.make(stored.spec, stored.epoch, adopt=leases is None and not stored.state.is_final)
        if isinstance(owned, MapJob):
            store = context.store
            inputs = await self._read(store.input_pages, job_id)
            results = await self._read(store.result_pages, job_id)
            done = await self._read(store.done_intervals, job_id)
            owned.restore(stored, inputs, results, done)
        elif isinstance(owned, CallsJob) and stored.state.is_final:
            owned.restore_ended(stored)
        owned.progress.wasted_s = stored.wasted_s
        if not stored.state.is_final:
            states = await self._read(context.store.checkpoints, job_id)
            owned.states.restore(states, owned.progress, context.now())
        self.add(owned)
        if not owned.progress.is_final:
            owned.adopt(leases or ())
            owned.perform(owned.progress.finish_if_done())
        return True

    def revive(self, job_id: JobId, then: Callable[[], None]) -> None:
        """Load an ended job again (somebody asks for it), then call `then`."""
        waiting = self._loading.get(job_id)
        if waiting is not None:
            waiting.append(then)
            return
        self._loading[job_id] = [then]
        self._context.loop.create_task(self._revive(job_id))

    async def _revive(self, job_id: JobId) -> None:
        try:
            if job_id not in self.active:
                await self.take(job_id)
        except StoreError as error:
            log.warning("cannot load %s: %s", job_id, error)
        for then in self._loading.pop(job_id, ()):
            then()

    def _read(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._context.loop.run_in_executor(self._context.reader, function, *args)

    # ------------------------------------------------------------ listings

    def list_jobs(self, message: ListJobs, elsewhere: Mapping[JobId, JobReport], reply: Callable[[Msg], None]) -> None:
        limit = max(1, min(message.limit, LIST_LIMIT))

        async def answer() -> None:
            try:
                stored = await self._context.questions.ask(self._context.store.list_jobs, limit, message.active_only)
            except StoreError as error:
                reply(Refused("overloaded", f"the store cannot be read: {error}"))
                return
            infos: dict[JobId, JobInfo] = {row.spec.job_id: info_of_stored(row) for row in stored}
            for job_id, report in elsewhere.items():
                infos[job_id] = report.info
            for job_id, owned in self.active.items():
                if job_id in infos or not owned.progress.is_final or not message.active_only:
                    infos[job_id] = owned.info()
            rows = sorted(infos.values(), key=lambda info: -info.created_unix_s)
            if message.active_only:
                rows = [info for info in rows if info.state in ("open", "running")]
            reply(Jobs(tuple(rows[:limit])))

        self._context.loop.create_task(answer())

    def find(self, text: str, elsewhere: Callable[[JobId], JobInfo | None], reply: Callable[[Msg], None]) -> None:
        exact = self.active.get(JobId(text))
        if exact is not None:
            reply(JobStatus(exact.epoch, exact.info()))
            return

        async def answer() -> None:
            try:
                ask = self._context.questions.ask
                job_id = await ask(self._context.store.find_job, text)
                stored = await ask(self._context.store.get_job, job_id) if job_id else None
            except StoreError as error:
                reply(Refused("overloaded", f"the store cannot be read: {error}"))
                return
            if stored is None:
                reply(
                    Refused("not_found", f"no job is called {text!r}, nor does the id of one job alone begin with it")
                )
                return
            owned = self.active.get(stored.spec.job_id)
            other = elsewhere(stored.spec.job_id)
            if owned is not None:
                reply(JobStatus(owned.epoch, owned.info()))
            elif other is not None:
                reply(JobStatus(other.epoch, other))
            else:
                with contextlib.suppress(StoreError):
                    if await self.take(stored.spec.job_id) and self.on_loaded is not None:
                        await self.on_loaded(stored.spec.job_id)
                owned = self.active.get(stored.spec.job_id)
                info = owned.info() if owned is not None else info_of_stored(stored)
                reply(JobStatus(stored.epoch, info))

        self._context.loop.create_task(answer())
