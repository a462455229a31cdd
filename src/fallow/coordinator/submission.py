"""Taking a job in: checks, the row, the first pages, and an answer once they are durable."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from fallow.coordinator.calls_job import CallsJob
from fallow.coordinator.context import Context
from fallow.coordinator.directory import Directory
from fallow.coordinator.map_job import MapJob
from fallow.coordinator.owned_job import OwnedJob
from fallow.core.admission import jobs_refusal
from fallow.core.effects import Effect
from fallow.model.ids import JobId, is_id
from fallow.model.job import JobSpec
from fallow.store.protocol import CreateJob, Op, SetJob, StoredJob, StoreError
from fallow.wire.messages import JobReport, Msg, Refused, SubmitJob, Submitted

ACTIVE_JOBS_LIMIT = 10_000


def _of_another(job_id: JobId) -> Refused:
    """Whoever knows a job's identifier does not speak for its client: a node lets a stranger's task speak of those
    jobs alone that it heard Submitted for."""
    return Refused("invalid", f"there is a job {job_id} of another client already; submit under a new identifier")


class Submission:
    """See the module."""

    def __init__(
        self,
        context: Context,
        directory: Directory,
        subscribe: Callable[[JobId], Awaitable[None]],
        unsubscribe: Callable[[JobId], None],
        elsewhere: Callable[[], Mapping[JobId, JobReport]],
    ) -> None:
        self._context = context
        self._directory = directory
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._elsewhere = elsewhere
        self._unwritten: set[JobId] = set()
        """Jobs that are taken in here and not in the store yet."""

    def submit(self, message: SubmitJob, reply: str) -> None:
        spec = message.spec
        refusal = self._refusal(spec)
        known = self._directory.active.get(spec.job_id)
        if known is not None and known.spec.client_id != spec.client_id:
            self._reply(reply, _of_another(spec.job_id))
        elif refusal is None and known is not None:
            answer = Submitted(spec.job_id, known.epoch, known.progress.cursor)
            self._context.journal.append([], lambda: self._reply(reply, answer))
        elif refusal is None:
            self._context.loop.create_task(self._create(message, reply))
        elif known is None:
            self._reply(reply, refusal)
        elif spec.job_id not in self._unwritten:
            self._reply(reply, Submitted(spec.job_id, known.epoch, 0))  # asked again: it is in the store already
        elif refusal.kind == "store_full":
            self._context.journal.withdraw(spec.job_id, partial(self._withdrawn, known, refusal, reply))
        else:
            self._reply(reply, refusal)  # it is asked again, and is then here

    def _withdrawn(self, owned: OwnedJob, refusal: Refused, reply: str, withdrawn: bool) -> None:
        """Whoever hears a refusal may count on it that nothing of the job is kept."""
        if withdrawn:
            self._unwritten.discard(owned.job_id)
            self._unsubscribe(owned.job_id)
            self._directory.forget(owned.job_id)
            owned.withdraw(refusal.message)
            self._reply(reply, refusal)
        elif owned.job_id not in self._unwritten:
            self._reply(reply, Submitted(owned.job_id, owned.epoch, 0))
        else:
            self._reply(reply, Refused("overloaded", refusal.message, retry_after_s=0.5))

    def _refusal(self, spec: JobSpec) -> Refused | None:
        if not is_id(spec.job_id) or not is_id(spec.client_id):
            return Refused("invalid", f"{spec.job_id!r} and {spec.client_id!r} must be identifiers of ours")
        if spec.timeout_s < 0 or spec.resources.cpu < 1 or spec.retry.retries < 0:
            return Refused("invalid", "timeout and retries cannot be negative, and cpu is at least 1")
        if self._context.draining:
            return Refused("overloaded", "this coordinator is being taken out; ask again", retry_after_s=0.1)
        refusal = self._context.refusal()
        if refusal is not None:
            return Refused(refusal[0], refusal[1], retry_after_s=0.5)
        if self._context.limits and spec.job_id not in self._directory.active:
            words = jobs_refusal(self._context.limits, spec.account, self._jobs_of(spec.account))
            if words:
                return Refused("limit", words)
        if len(self._directory.active) >= ACTIVE_JOBS_LIMIT:
            return Refused("overloaded", f"the pool already holds {ACTIVE_JOBS_LIMIT} jobs; try again later")
        return None

    def _jobs_of(self, account: str) -> int:
        """How many jobs the account has at work in the pool: here, and as other coordinators reported them last."""
        here = self._directory.active.values()
        own = sum(1 for owned in here if owned.spec.account == account and not owned.progress.is_final)
        reports = self._elsewhere().values()
        return own + sum(1 for r in reports if r.spec.account == account and r.info.state in ("open", "running"))

    async def _create(self, message: SubmitJob, reply: str) -> None:
        spec = message.spec
        context = self._context
        try:
            stored, cursor = await context.questions.ask(self._stored, spec.job_id)
        except StoreError as error:
            self._reply(reply, Refused("overloaded", f"the store cannot be read: {error}", retry_after_s=0.5))
            return
        if stored is not None and stored.spec.client_id != spec.client_id:
            self._reply(reply, _of_another(spec.job_id))
            return
        if stored is not None:  # it was taken in, and may be over by now: whoever owns it has it, or will find it
            self._reply(reply, Submitted(spec.job_id, stored.epoch, cursor))
            return
        await self._subscribe(spec.job_id)
        if spec.job_id in self._directory.active:
            known = self._directory.active[spec.job_id]
            if known.spec.client_id != spec.client_id:
                self._reply(reply, _of_another(spec.job_id))
            elif spec.job_id not in self._unwritten:  # else it is asked again, and is then in the store or refused
                self._reply(reply, Submitted(spec.job_id, known.epoch, known.progress.cursor))
            return
        owned = self._directory.make(spec, epoch=1)
        owned.is_written = False
        self._directory.add(owned)
        if isinstance(owned, CallsJob):
            owned.submitted()
        ops: list[Op] = [CreateJob(spec, self._context.owner, self._context.unix_s())]
        effects: list[Effect] = []
        if isinstance(owned, MapJob):
            ops += owned.take_pages(message.pages)
            if message.total >= 0 and message.total == owned.progress.cursor:
                effects = owned.progress.end_inputs(message.total)
                ops.append(SetJob(spec.job_id, 1, total=message.total))
                if not owned.progress.is_final:
                    owned.known_state = owned.progress.state
                    ops.append(SetJob(spec.job_id, 1, state=owned.progress.state))
        answer = Submitted(spec.job_id, owned.epoch, owned.progress.cursor)
        self._unwritten.add(spec.job_id)
        self._context.journal.append(ops, partial(self._written, owned, answer, reply))
        owned.perform(effects)
        self._context.kick_matcher()

    def _stored(self, job_id: JobId) -> tuple[StoredJob | None, int]:
        """The job as the store has it, and how many of its inputs."""
        store = self._context.store
        stored = store.get_job(job_id)
        if stored is None or stored.total >= 0:
            return stored, stored.total if stored is not None else 0
        return stored, store.inputs_stop(job_id)

    def _written(self, owned: OwnedJob, answer: Submitted, reply: str) -> None:
        owned.is_written = True
        self._unwritten.discard(answer.job_id)
        self._reply(reply, answer)
        owned.dispatch()

    def _reply(self, reply: str, message: Msg) -> None:
        if reply:
            self._context.connection.send(reply, message)
