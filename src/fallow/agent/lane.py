"""A lane of a slot: one warm worker, the lease that it runs, and what to do when either ends unexpectedly."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from fallow.agent.relay import WorkerRelay
from fallow.agent.slot_effects import Held
from fallow.agent.worker_api import OutputLine, Report, RunOrder, WorkerProcess
from fallow.agent.workers import WorkerKind
from fallow.model.ids import JobId, Token
from fallow.model.job import INLINE_LIMIT_BYTES, JobSpec
from fallow.model.parts import Death

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from fallow.agent.slot import Slot

log = logging.getLogger("fallow.agent")

KILL_AFTER_S = 0.3
"""A revoked task that has not ended so long after it was limited is killed."""
RESTART_MAX_S = 5.0
GPU_AGAIN_S = 0.1
FILES_FROM_BYTES = 48 * 1024
"""Of results that client and node may share as files: smaller ones cost less in messages."""
FILES_FROM_TASKS = 64
"""Shorter leases are not worth finding out whether the blob store is a folder of this machine."""
LIVED_S = 5.0
"""A worker that lived for so long does not count as one that could not start."""


class Seat:
    """One worker's place in its lane: what it says counts only as long as it sits there."""

    def __init__(self, lane: Lane, kind: WorkerKind) -> None:
        self.lane = lane
        self.kind = kind
        self.process: WorkerProcess | None = None
        self.death: Death | None = None
        self.since_s = time.monotonic()
        self.is_doomed = False
        """The worker was told that it is about to be ended: it gets no more orders."""
        node = lane.slot.node
        self.relay = WorkerRelay(
            lambda: node.connection,
            lambda: self.process,
            bool(kind.tenant),
            lambda: node.paced.throttle if node.paced is not None else None,
        )

    def reported(self, report: Report) -> None:
        if report.ended:
            self._flush_lines()
        if self.lane.seat is self:
            self.lane.reported(report)

    def _flush_lines(self) -> None:
        """What tasks have printed goes ahead of what came of them."""
        job_id = self.process.job_id if self.process is not None else None
        if job_id is not None:
            self.lane.slot.node.logs.flush_job(job_id)

    def printed(self, lines: list[OutputLine]) -> None:
        job_id = self.process.job_id if self.process is not None else None
        if job_id is not None:
            self.lane.slot.node.logs.add(job_id, lines)

    def died(self, token: Token | None, death: Death) -> None:
        self.death = death
        process = self.process
        self._flush_lines()
        self.close()
        if self.lane.seat is self:
            lost_s, was_unpickling = (process.lost_s, process.was_unpickling) if process is not None else (0.0, False)
            self.lane.died(token, death, lost_s, was_unpickling)

    def asked(self, kind: str, body: bytes, answer: Callable[[bytes], None]) -> None:
        self.lane.slot.node.desk.asked(self, kind, body, answer)

    def close(self) -> None:
        """The worker is gone or on its way."""
        node = self.lane.slot.node
        gpus = node.gpus.uuids(self) if self.kind.gpu.count else ()
        node.gpus.release(self)
        if self.process is not None:
            self.process = None
            node.workers.ended(self.kind, gpus)
        self.relay.close()


class Lane:
    """Lane `index` of its slot. See slot_state for the decisions."""

    def __init__(self, slot: Slot, index: int) -> None:
        self.slot = slot
        self.index = index
        self.seat: Seat | None = None
        self.waiting: Held | None = None
        """A lease that is to begin as soon as its pages and a worker are there."""
        self.running: Held | None = None
        """The lease that the worker has."""
        self._starting: asyncio.Task[None] | None = None
        self._starting_kind: WorkerKind | None = None
        self._failures = 0
        self._closed = False

    @property
    def process(self) -> WorkerProcess | None:
        return self.seat.process if self.seat is not None else None

    # ------------------------------------------------------------ workers

    def want_worker(self, kind: WorkerKind) -> None:
        """Have a warm worker of this kind; another one goes."""
        if self._closed or self.slot.machine.paused or (self._starting is not None and self._starting_kind == kind):
            return
        if self.seat is not None:
            if self.seat.kind == kind:
                return
            if self.running is not None:
                return
            self._release()
        if self._starting is not None:
            self._starting.cancel()
        self._starting_kind = kind
        if self.seat is not None and self.seat.is_doomed:
            return  # there is a new one when this one is gone
        self._starting = asyncio.ensure_future(self._start(kind))

    async def _start(self, kind: WorkerKind) -> None:
        if self._failures:
            await asyncio.sleep(min(RESTART_MAX_S, 0.05 * 2**self._failures))
        seat = Seat(self, kind)
        try:
            environment = await self._devices(seat)
            node = self.slot.node
            gpus = node.gpus.uuids(seat) if kind.gpu.count else ()
            seat.process = await node.workers.start(kind, self.slot.number, seat, environment, gpus)
        except asyncio.CancelledError:
            seat.close()
            raise
        except Exception as error:
            seat.close()
            log.warning("slot %d: a worker could not be started: %s", self.slot.number, error)
            self._starting = None
            self._failed(f"a worker could not be started: {error}")
            return
        self._starting = None
        if seat.death is not None:
            seat.close()
            self._failed(seat.death.message)
            return
        self.seat = seat
        self.advance()

    async def _devices(self, seat: Seat) -> dict[str, str]:
        """Variables that show the worker the devices that its job asked for; waits until they are free."""
        gpus = self.slot.node.gpus
        if not seat.kind.gpu.count:
            return gpus.environment((), seat.kind.gpu)
        while (numbers := gpus.take(seat, seat.kind.gpu)) is None:
            self.slot.node.free_gpus()
            await asyncio.sleep(GPU_AGAIN_S)
        return gpus.environment(numbers, seat.kind.gpu)

    @property
    def waits_for_gpus(self) -> bool:
        """Its worker cannot be started yet, or just now."""
        return self._starting is not None and self._starting_kind is not None and self._starting_kind.gpu.count > 0

    def release_idle_gpus(self) -> None:
        """Let a worker go that keeps devices for a job that the slot does not work for any more."""
        if self.seat is None or not self.seat.kind.gpu.count or self.running is not None or self.waiting is not None:
            return
        if self.seat.kind != self.slot.wanted_kind():
            self._release()

    @property
    def tenant(self) -> str:
        """The job whose sandbox the lane's worker is in, or is being started in."""
        kind = self.seat.kind if self.seat is not None else self._starting_kind if self._starting else None
        return kind.tenant if kind is not None else ""

    def release_other_tenants(self, live: Container[JobId]) -> None:
        """Let a worker go whose job has ended."""
        if self.seat is None or not self.seat.kind.tenant or self.running is not None or self.waiting is not None:
            return
        if JobId(self.seat.kind.tenant) not in live:
            self._release()

    def _failed(self, words: str) -> None:
        """The worker died outside of any task, or never came up."""
        self._failures += 1
        job_id = self.waiting.job_id if self.waiting is not None else self.slot.machine.job_id
        if self._failures >= 3 and job_id is not None:
            self._failures = 0
            self.slot.refuse(job_id, "setup", words)
        kind = self.slot.wanted_kind()
        if kind is not None:
            self.want_worker(kind)

    def _release(self) -> None:
        """Let the worker go; it ends by itself."""
        seat, self.seat = self.seat, None
        if seat is not None:
            process = seat.process
            seat.close()
            if process is not None:
                process.stop()

    # ------------------------------------------------------------ running

    def begin(self, held: Held) -> None:
        """Run the lease, now or as soon as all that it needs is here."""
        self.waiting = held
        self.advance()

    def advance(self) -> None:
        """Hand the waiting lease to the worker if nothing is missing any more."""
        held = self.waiting
        if held is None or self.running is not None:
            return
        job = self.slot.node.jobs.get(held.job_id)
        if job is None:
            self.waiting = None
            self.slot.lack_pages(held)
            return
        paths = self.slot.paths_of(held)
        if self.seat is None or self.seat.kind != job.kind:
            self.want_worker(job.kind)
        process = self.process
        if paths is None or process is None or self.seat is None or self.seat.kind != job.kind:
            return
        order = RunOrder(
            token=held.token,
            start=held.start,
            stop=held.stop,
            budget_s=held.budget_s,
            pages=held.pages,
            paths=paths,
            alone=held.alone,
            attempt=held.attempt,
            checkpoints=held.checkpoints,
            files_from=self._files_from(job.spec, held.stop - held.start),
            singly=self.slot.node.jobs.to_unpickle_singly(held.job_id, held.pages),
        )
        self.waiting = None
        self.running = held
        held.pages = held.checkpoints = ()
        self.slot.forget_paths(held)
        self.seat.relay.account = job.spec.account
        process.run(job.spec, job.function, order)

    def _files_from(self, spec: JobSpec, tasks: int) -> int:
        """What is written where its reader finds it need not pass through the coordinator and its journal."""
        if spec.beside and tasks >= FILES_FROM_TASKS and self.slot.node.blobs.is_local:
            return FILES_FROM_BYTES
        return INLINE_LIMIT_BYTES

    def reported(self, report: Report) -> None:
        if report.results:
            self._failures = 0
        held = self.running
        if report.ended and held is not None and held.token == tuple(report.token):
            self.running = None
            if self.seat is not None and self.seat.is_doomed:
                self.seat = None  # it closes when the process is gone
                self._warm_up()
        self.slot.reported(self, held, report)
        if report.no_room_bytes:
            self.slot.node.fullness.met(report.no_room_bytes)

    def died(self, token: Token | None, death: Death, lost_s: float, was_unpickling: bool) -> None:
        """The worker is gone: tell it, and have a new one at once. `lost_s`: what its task ran in vain."""
        if self.seat is not None and time.monotonic() - self.seat.since_s > LIVED_S:
            self._failures = 0
        held = self.running
        self.running = self.seat = None
        if held is not None:
            # Whatever the worker thought it was doing, the lease that it had is lost.
            token = held.token
        if death.kind == "preempted":
            if held is not None:
                self.slot.node.wasted_s += lost_s
                self.slot.perform(self.slot.machine.preempted(self.index, held.token, lost_s, time.monotonic()))
            self._warm_up()
            return
        if was_unpickling and held is not None and self.slot.node.jobs.blame_inputs(held.job_id, death):
            self.slot.perform(self.slot.machine.preempted(self.index, held.token, 0.0, time.monotonic()))
            self._warm_up()
            return
        if death.kind == "setup" and held is not None and not held.revoked:
            self.slot.refuse(held.job_id, "setup", f"{death.message}\n\n{death.detail}".strip())
        if token is None:
            self._failed(death.message)
        else:
            self.slot.perform(self.slot.machine.died(self.index, token, death, time.monotonic()))
        self._warm_up()

    def _warm_up(self) -> None:
        kind = self.slot.wanted_kind()
        if kind is not None and self.seat is None:
            self.want_worker(kind)

    def progress(self, held: Held) -> tuple[int, float]:
        """(task in progress or -1, seconds that it has run) of a lease that this lane runs."""
        process = self.process
        if process is None or self.running is not held:
            return -1, 0.0
        token, index, elapsed_s = process.progress()
        if token is None or (token[0], token[1]) != held.token:
            return -1, 0.0
        return index, elapsed_s

    def abort(self, held: Held, reason: str) -> None:
        """End the lease quickly: nothing of it is wanted."""
        if self.waiting is held:
            self.waiting = None
            self._freed(held)
            return
        process = self.process
        if self.running is not held or process is None:
            return
        process.limit(held.token, held.start)

        def kill() -> None:
            if self.running is held and self.process is process:
                process.kill("cancelled", reason or "the task is not wanted any more")

        asyncio.get_running_loop().call_later(KILL_AFTER_S, kill)

    def preempt(self, reason: str, grace_s: float) -> None:
        """Have no worker any more, `grace_s` from now at the latest. The lease that it runs ends by a report, or with
        the worker."""
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        held, self.waiting = self.waiting, None
        if held is not None:
            self.slot.forget_paths(held)
            self.slot.perform(self.slot.machine.preempted(self.index, held.token, 0.0, time.monotonic()))
        seat = self.seat
        if seat is None or seat.process is None or seat.is_doomed:
            return
        seat.is_doomed = True
        process = seat.process

        def gone(_: asyncio.Future[int]) -> None:
            seat.close()
            self.slot.worker_gone(process)

        self.slot.doomed.add(process)
        process.exited.add_done_callback(gone)
        if self.running is None:
            self.seat = None
        process.preempt(reason, grace_s)

    def _freed(self, held: Held) -> None:
        self.slot.perform(self.slot.machine.reported(self.index, Report(held.token, ended=True), time.monotonic()))

    def close(self) -> None:
        """The lane goes, with its worker."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        self._release()

    def job_id(self) -> JobId | None:
        return self.process.job_id if self.process is not None else None
