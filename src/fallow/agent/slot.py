"""Performs what slot_state decides: sends, begins, cuts and kills."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

import msgspec

from fallow.agent.jobs import NotReady, Ready
from fallow.agent.lane import Lane
from fallow.agent.pages import cover
from fallow.agent.slot_effects import (
    Abort,
    Begin,
    Cut,
    Deliver,
    Discard,
    Effect,
    Held,
    Later,
    Preempt,
    Prepare,
    Refuse,
    Retire,
    SendPull,
    SendUnpull,
    StandingPull,
)
from fallow.agent.slot_exchange import is_behind, to_exchange
from fallow.agent.slot_state import SlotMachine
from fallow.agent.worker_api import Report
from fallow.model.errors import PoolRefused
from fallow.model.ids import JobId
from fallow.model.job import JobKind, JobSpec
from fallow.model.parts import HeldLease, InputPage
from fallow.wire import subjects
from fallow.wire.messages import (
    Assign,
    AssignRefused,
    CallResults,
    HandIn,
    Lease,
    Pull,
    Revoke,
    SlotState,
    TakeBack,
    Unpull,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fallow.agent.node import Node
    from fallow.agent.worker_api import WorkerProcess
    from fallow.agent.workers import WorkerKind

log = logging.getLogger("fallow.agent")

CUT_SETTLES_S = 0.003
"""A worker that was limited has seen the limit after so long, or is inside a task."""
WAITED_S = 2.0
"""A lease whose inputs have not come for so long goes back, where another job is to have the slot."""
TIED_AFTER_S = 5.0
"""A task that has run for so long may run for hours: the slot counts as its job's until it ends."""
INPUTS_AGAIN_S = 0.5
INPUTS_TRIES = 5

Paths = dict[int, str]


class Slot:
    """Slot `number` of the node."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.number = number
        self.machine = SlotMachine(node.node_id, number)
        self.lanes: dict[int, Lane] = {0: Lane(self, 0)}
        self._paths: dict[Held, Paths | None] = {}
        """Files of large pages of leases that have not begun; None: still being fetched."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._missing_count = 0
        self.doomed: set[WorkerProcess] = set()
        """Workers that were given notice and are not gone yet."""
        self._is_told = False
        """What is being handed in was told to the job's client already."""

    # ------------------------------------------------------------ events

    def assigned(self, message: Assign) -> None:
        self.perform(self.machine.assign(message.epoch, message.seq, message.spec, time.monotonic()))
        if self.node.gpus.withheld:
            self.look_at_gpus()
        for lane in self.lanes.values():
            held = lane.waiting
            if held is not None and held.job_id != self.machine.job_id and lane.waits_for_gpus:
                # The pool has taken the job away, for lack of devices: who knows when one is free.
                self.lack_pages(held)
                if (kind := self.wanted_kind()) is not None:
                    lane.want_worker(kind)
        self._give_back_what_waits()
        if is_behind(self.machine):
            self.node.behind[self.machine] = self
        else:
            self.node.behind.pop(self.machine, None)

    def _exchange(self, ended: Held) -> bool:
        """Change jobs with a slot whose job waits behind a task, now that a lease is over here. Says whether it did."""
        behind = self.node.behind
        behind.pop(self.machine, None)
        machine = to_exchange(self.machine, ended, behind)
        if machine is None:
            return False
        mine, other = self.machine.spec, behind.pop(machine)
        its = machine.spec
        other.perform(machine.turn_to(mine))
        self.perform(self.machine.turn_to(its))
        return True

    def _give_back_what_waits(self) -> None:
        """The slot is another job's by now, which need not wait for inputs that are long in coming: the blob store may
        be away."""
        for lane in list(self.lanes.values()):
            held = lane.waiting
            if held is None or held.job_id == self.machine.job_id or self.paths_of(held) is not None:
                continue
            state = self.machine.lanes.of(held.job_id, held.token)
            if state is not None and time.monotonic() - state.began_s > WAITED_S:
                self.lack_pages(held)

    def leased(self, message: Lease) -> None:
        effects = self.machine.lease(message, time.monotonic())
        if not effects:
            self.node.outbox.resend_lease(message.job_id, message.token)
        self.perform(effects)
        for held in self.machine.queue:
            self.paths_of(held)
        for _, state in message.checkpoints:
            if state.data is None:
                self.node.blobs.fetch_ahead(state.digest, state.size)

    def taken_back(self, message: TakeBack) -> None:
        self.perform(self.machine.take_back(message.job_id, message.token, message.share, time.monotonic()))

    def revoked(self, message: Revoke) -> None:
        self.perform(self.machine.revoke(message.job_id, message.tokens, message.reason, time.monotonic()))

    def tick(self) -> None:
        """Called every second or so."""
        self.perform(self.machine.tick(time.monotonic()))
        self._give_back_what_waits()
        if len(self.machine.lanes) > 1 and not any(lane.waiting for lane in self.machine.lanes):
            self.perform(self.machine.retire_idle())
        if len(self._paths) > 16:
            held = set(self.machine.held())
            self._paths = {key: paths for key, paths in self._paths.items() if key in held}

    def pull_again(self) -> None:
        """The connection or the owner is a new one."""
        self.perform(self.machine.pull_again(time.monotonic()))

    def drain(self, on: bool) -> None:
        self.perform(self.machine.drain(on, time.monotonic()))

    def preempt(self, reason: str, grace_s: float) -> None:
        """The owner of the machine wants it back: all workers of the slot are gone `grace_s` from now, and none comes
        before `allow`."""
        self.perform(self.machine.preempt())
        for lane in list(self.lanes.values()):
            lane.preempt(reason, grace_s)
        if not self.doomed:
            self.node.slot_stopped(self.number)

    def allow(self) -> None:
        self.perform(self.machine.allow())
        kind = self.wanted_kind()
        if kind is not None and not self.machine.paused:
            self.lanes[0].want_worker(kind)

    def worker_gone(self, process: WorkerProcess) -> None:
        """A worker that was given notice has ended, with all that it had started."""
        self.doomed.discard(process)
        if not self.doomed and self.machine.paused:
            self.node.slot_stopped(self.number)

    def reported(self, lane: Lane, held: Held | None, report: Report) -> None:
        """The lane's worker hands in what came of `held`."""
        for page in report.results:
            self.node.tasks_done += page.stop - page.start
        with self.node.together():
            self._is_told = self._tell_client(held, report)
            is_another = bool(self.node.behind) and report.ended and held is not None and self._exchange(held)
            try:
                self.perform(self.machine.reported(lane.index, report, time.monotonic()))
            finally:
                self._is_told = False
            if is_another:
                self.node.beat()  # the pool is to know before its next plan
            self.node.pulse.ride()

    def _tell_client(self, held: Held | None, report: Report) -> bool:
        """Answers of single calls are not journalled: their client hears of them at once, before the owner does.
        Should the message be lost, the client asks the owner. Says whether it was told."""
        if held is None or held.revoked or held.token != tuple(report.token) or not report.results or report.files:
            return False
        job = self.node.jobs.get(held.job_id)
        if job is None or job.spec.kind is not JobKind.CALLS:
            return False
        message = CallResults(held.job_id, self.node.jobs.epoch(held.job_id), report.results, ())
        self.node.send(subjects.client(job.spec.client_id), message)
        return True

    def refuse(self, job_id: JobId, kind: str, message: str, fatal: bool = True) -> None:
        self.perform(self.machine.refused(job_id, kind, message, fatal))

    def lend(self, lane: Lane, waiting: bool) -> bool:
        lent, effects = self.machine.lend(lane.index, waiting, time.monotonic())
        self.perform(effects)
        return lent

    def lack_pages(self, held: Held) -> None:
        self.forget_paths(held)
        for lane in self.lanes.values():
            if lane.waiting is held:
                lane.waiting = None
        self.perform(self.machine.lack_pages(held.job_id, held.token, time.monotonic()))

    def look_at_gpus(self) -> None:
        """The machine's owner has taken devices, or left some: a job that needs them waits without a lease."""
        spec = self.machine.spec
        is_short = spec is not None and self.node.gpus.lacks(spec.resources.gpu)
        held = [lane.waiting for lane in self.lanes.values() if lane.waiting is not None]
        self.perform(self.machine.lack_devices(is_short))
        for one in held if is_short else ():
            self.lack_pages(one)

    def hand_in_all(self) -> None:
        """The agent ends: begin nothing more, so that running orders hand in what is done."""
        for lane in self.machine.lanes:
            if lane.held is not None:
                self._cut(self.lanes[lane.index], lane.held, 1.0)

    # ------------------------------------------------------------ what is known

    def state(self) -> SlotState:
        return SlotState(self.number, self.machine.job_id, self.machine.paused, self._tied_to())

    def _tied_to(self) -> JobId | None:
        """The job of a task that may run on for long. Not of one that waits for calls of its own, with its slot lent;
        nor where devices or nodes are counted, which the matcher does by what is assigned."""
        lanes = self.machine.lanes
        lane = lanes.active
        if lane is None or lanes.lent_count or lane.held is None or lane.held.revoked:
            return None
        job = self.node.jobs.get(lane.held.job_id)
        if job is None or job.spec.resources.gpu.count or job.spec.resources.cpu > 1 or job.spec.max_nodes:
            return None
        index, elapsed_s = self.lanes[lane.index].progress(lane.held)
        return lane.held.job_id if index >= 0 and elapsed_s > TIED_AFTER_S else None

    def leases(self) -> list[HeldLease]:
        """Every lease of the slot, as a beat names it."""
        named: list[HeldLease] = []
        for lane in self.machine.lanes:
            held = lane.held
            if held is not None and not held.revoked:
                index, elapsed_s = self.lanes[lane.index].progress(held)
                named.append(HeldLease(held.job_id, held.token, self.number, held.start, held.stop, index, elapsed_s))
        for held in self.machine.queue:
            named.append(HeldLease(held.job_id, held.token, self.number, held.start, held.stop))
        return named

    @property
    def is_busy(self) -> bool:
        return any(lane.held is not None for lane in self.machine.lanes)

    def wanted_kind(self) -> WorkerKind | None:
        """The kind of worker that the slot should keep warm."""
        job_id = self.machine.job_id
        job = self.node.jobs.get(job_id) if job_id is not None else None
        return job.kind if job is not None else self.node.default_kind

    # ------------------------------------------------------------ performing

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Begin(lane=index, held=held):
                    if index not in self.lanes:
                        self.lanes[index] = Lane(self, index)
                    self.lanes[index].begin(held)
                case Deliver():
                    self._deliver(effect)
                case SendPull(pull=pull):
                    self.node.send(subjects.job(pull.job_id), self._pull(pull))
                case SendUnpull(job_id=job_id, seq=seq):
                    self.node.send(subjects.job(job_id), Unpull(job_id, self.node.node_id, self.number, seq))
                case Prepare(spec=spec):
                    self._prepare(spec)
                case Cut(lane=index, held=held, share=share):
                    self._cut(self.lanes[index], held, share)
                case Abort(lane=index, held=held, reason=reason):
                    self.forget_paths(held)
                    self.lanes[index].abort(held, reason)
                case Preempt(lane=index, held=held):
                    self._cut(self.lanes[index], held, 1.0)
                case Retire(lane=index):
                    lane = self.lanes.pop(index, None)
                    if lane is not None:
                        lane.close()
                case Refuse(job_id=job_id, kind=kind, message=message, fatal=fatal):
                    refusal = AssignRefused(job_id, self.node.node_id, message, fatal, kind)
                    self.node.send(subjects.job(job_id), refusal)
                case Discard(files=files):
                    self.discard(files)
                case Later(delay_s=delay_s):
                    asyncio.get_running_loop().call_later(delay_s, self._later)
                case _:
                    raise AssertionError(f"an effect that no slot knows: {effect}")

    def _later(self) -> None:
        self.perform(self.machine.tick(time.monotonic()))

    def _deliver(self, effect: Deliver) -> None:
        hand_in = effect.hand_in
        if self._is_told and hand_in.results:
            hand_in = msgspec.structs.replace(hand_in, told=True)
        if effect.pull is not None:
            pull = self._pull(effect.pull)
            if effect.files or self.node.outbox.is_blocked(hand_in.job_id, hand_in.token):
                # The hand-in waits until its files are stored; the pull need not.
                self.node.send(subjects.job(pull.job_id), pull)
            else:
                hand_in = _with_pull(hand_in, pull)
        self.node.outbox.add(hand_in, effect.files)

    def _pull(self, pull: StandingPull) -> Pull:
        pages = self.node.pages.named(pull.job_id)
        return Pull(pull.job_id, self.node.node_id, self.number, pull.seq, pull.idle, pages)

    def _prepare(self, spec: JobSpec) -> None:
        def done(outcome: Ready | NotReady) -> None:
            if isinstance(outcome, NotReady):
                self.refuse(spec.job_id, outcome.kind, outcome.message, outcome.fatal)
                return
            if self.machine.job_id == spec.job_id:
                self.lanes[0].want_worker(outcome.kind)
            self.perform(self.machine.prepared(spec.job_id, time.monotonic()))

        self.node.jobs.prepare(spec, done)

    def _cut(self, lane: Lane, held: Held, share: float) -> None:
        if lane.waiting is held:
            self.lack_pages(held)
            return
        process = lane.process
        if process is None or lane.running is not held:
            return
        index, _ = lane.progress(held)
        stop = self.machine.plan_cut(held, share, index)
        if index + 1 >= held.cut:
            self.perform(self.machine.cut(held, index))  # all of it is begun: whoever asked asks another slot at once
            return
        process.limit(held.token, stop)

        def settled() -> None:
            if lane.running is not held or lane.process is not process:
                return
            token, index, _ = process.progress()
            if token is not None and (token[0], token[1]) == held.token:
                self.perform(self.machine.cut(held, index))

        asyncio.get_running_loop().call_later(CUT_SETTLES_S, settled)

    @staticmethod
    def discard(files: dict[str, str]) -> None:
        for path in files.values():
            with contextlib.suppress(OSError):
                os.unlink(path)

    # ------------------------------------------------------------ pages

    def paths_of(self, held: Held) -> Paths | None:
        """Files of the large pages of a lease, by their first task; None while they are on their way. Resolves
        `held.pages` to all pages that the worker needs."""
        if held in self._paths:
            return self._paths[held]
        pages = self._pages_of(held)
        if pages is None:
            # Named in a pull, but dropped from the cache meanwhile.
            asyncio.get_running_loop().call_soon(self.lack_pages, held)
            self._paths[held] = None
            return None
        held.pages = pages
        large = [page for page in pages if page.page.data is None]
        if not large:
            return {}
        self._paths[held] = None
        task = asyncio.ensure_future(self._fetch(held, large))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    def forget_paths(self, held: Held) -> None:
        """The lease has begun, or never will."""
        self._paths.pop(held, None)

    def _pages_of(self, held: Held) -> tuple[InputPage, ...] | None:
        job = self.node.jobs.get(held.job_id)
        if job is not None and job.spec.kind is JobKind.CALLS:
            return held.pages if cover(held.pages, held.start, held.stop) else None
        self.node.pages.add(held.job_id, held.pages)
        return self.node.pages.find(held.job_id, held.start, held.stop)

    async def _fetch(self, held: Held, large: list[InputPage]) -> None:
        try:
            found = await asyncio.gather(*(self.node.blobs.path(page.page.digest, page.page.size) for page in large))
        except Exception as error:
            await self._inputs_missing(held, error)
            return
        self._missing_count = 0
        if held not in self._paths:
            return
        self._paths[held] = {page.start: str(path) for page, path in zip(large, found, strict=True)}
        for lane in self.lanes.values():
            if lane.waiting is held:
                lane.advance()

    async def _inputs_missing(self, held: Held, error: Exception) -> None:
        """Give the lease back, but not at once: it may well come here again. In the end leave the job to others."""
        self._missing_count += 1
        log.warning("inputs of %r cannot be had: %s", held, error)
        if isinstance(error, PoolRefused) and error.kind == "store_full":
            self.node.fullness.met(max((page.page.size for page in held.pages if page.page.data is None), default=0))
        await asyncio.sleep(INPUTS_AGAIN_S * self._missing_count)
        self.lack_pages(held)
        if self._missing_count >= INPUTS_TRIES:
            self._missing_count = 0
            words = f"{self.node.name} cannot get inputs of the job from the pool's store: {error}"
            self.refuse(held.job_id, "environment", words, fatal=False)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for lane in self.lanes.values():
            lane.close()


def _with_pull(hand_in: HandIn, pull: Pull) -> HandIn:
    return msgspec.structs.replace(hand_in, pull=pull)
