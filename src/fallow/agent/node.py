"""The agent's shell: slots and what they share, the messages of coordinators, heartbeats, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import fallow
from fallow.agent.beats import Beats
from fallow.agent.blob_access import BlobAccess
from fallow.agent.desk import Desk
from fallow.agent.devices.gpus import Gpus, tenants_of
from fallow.agent.environments import Environments
from fallow.agent.fullness import Fullness
from fallow.agent.jobs import Jobs
from fallow.agent.leases import jobs_in_use
from fallow.agent.link import Link, say_away
from fallow.agent.logs import LogSender
from fallow.agent.memory import collect_rarely
from fallow.agent.outbox import Outbox
from fallow.agent.pages import PageCache
from fallow.agent.pauses import Pauses
from fallow.agent.probe import own_python, probe_node
from fallow.agent.pulse import Pulse
from fallow.agent.rhythm import Rhythm
from fallow.agent.slot import Slot
from fallow.agent.upkeep import end_sandboxes, keep_house
from fallow.agent.waiting import until
from fallow.agent.workers import Workers, own_kind
from fallow.model.ids import JobId, NodeId, is_call_token, new_id
from fallow.model.job import Purpose
from fallow.model.lending import GpuSettings
from fallow.wire import subjects
from fallow.wire.messages import (
    Assign,
    BeatAck,
    Bye,
    HandIn,
    HandInAck,
    LeaderHere,
    Lease,
    Msg,
    NameLeases,
    Revoke,
    TakeBack,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fallow.agent.lane import Lane
    from fallow.agent.limits.bandwidth import Throttle
    from fallow.agent.limits.messages import PacedMessages
    from fallow.model.lending import LendingSettings
    from fallow.model.node import NodeSpec
    from fallow.wire.connection import Connection

log = logging.getLogger("fallow.agent")

REPORT_WAIT_S = 2.0
ACKNOWLEDGE_WAIT_S = 1.5
SWEEP_EVERY_S = 30.0
PING_OFTEN_S = 0.5
"""As wire.connection's, which is not imported before it is needed."""
LOOK_LEAST_S = 0.8 * PING_OFTEN_S


class Node:
    """One agent. `start_workers` before `serve`: workers warm up while the connection is made."""

    def __init__(
        self,
        node_id: NodeId,
        name: str,
        slots: int,
        home: Path,
        scratch: Path,
        workers: Workers,
        embedded: bool,
        lending: LendingSettings | None = None,
        own_pool: bool = True,
    ) -> None:
        self.node_id = node_id
        self.name = name
        self.session = new_id("run", os.urandom)
        self.embedded = embedded
        spec = probe_node(self.node_id, name, slots, home, fallow.__version__)
        self.spec = msgspec.structs.replace(spec, seeks_pythons=not embedded)
        if lending is not None:
            from fallow.agent.limits.offer import lent_spec

            self.spec = lent_spec(self.spec, lending)
        if workers.confinement is not None:
            self.spec = workers.confinement.offered(self.spec)
        elif not own_pool:
            self.spec = msgspec.structs.replace(self.spec, shares_gpus=False)
        self.scratch = scratch
        self.link: Link | None = None
        self.pulse = Pulse()
        self.paced: PacedMessages | None = None
        """None: the machine's owner sets no limits."""
        self.workers = workers
        confined = workers.confinement is not None
        self.default_kind = None if confined else own_kind()
        """Of workers that are kept warm for any job; None: every job has workers of its own."""
        self.gpu_settings = lending.gpu if lending is not None else GpuSettings()
        self.gpus = Gpus(self.spec.devices, self.spec.shares_gpus)
        self.blobs = BlobAccess(lambda: self.connection, home / "blobs")
        self.pythons: dict[str, str] = {own_python(): sys.executable}
        self.environments = Environments(home / "environments", lambda: self.pythons, self._interpreters_in_use)
        self.environments.confinement = workers.confinement
        self.jobs = Jobs(
            self.environments, self.blobs, home / "modules", name, lambda: jobs_in_use(self.slots), confined
        )
        self.pages = PageCache()
        self.logs = LogSender(name, self.send)
        self.desk = Desk(self.blobs, lambda: {"node": self.name, "node_id": self.node_id}, scratch)
        self.outbox = Outbox(self._send_hand_in, self._store_result, scratch / "outbox", time.monotonic)
        self.slots = [Slot(self, number) for number in range(self.spec.slots)]
        self.on_work: list[Callable[[], None]] = []
        """Called when a slot is assigned to a job: work may begin at any moment."""
        self.after_stop: list[Callable[[int], None]] = []
        """Called with a slot's number when it was preempted and all of its workers are gone."""
        self._pauses = Pauses(self.slots)
        self.fullness = Fullness(home, self._drain_slots, takes_words=not confined)
        self._home = home
        self._rhythm = Rhythm(time.monotonic())
        self._beats = Beats(self, self._rhythm)
        self._looked_s = 0.0
        """When the connection was looked at last."""
        self._next_sweep_s = time.monotonic() + SWEEP_EVERY_S
        self._sweeping: asyncio.Future[None] | None = None
        self._tell_spec = True
        self._anew_beats = 0  # how many of the next ones say that the connection is a new one
        self._said_away = False
        self._drained_by_operator = False
        self._drained_by_owner = False
        self._ending = False
        self.tasks_done = 0
        """Handed in since the agent began."""
        self.wasted_s = 0.0
        """Run time of tasks that was lost to preemption."""

    # ------------------------------------------------------------ sending

    @property
    def is_busy(self) -> bool:
        """Something runs on one of its slots."""
        return any(slot.is_busy for slot in self.slots)

    @property
    def connection(self) -> Connection | None:
        return self.link.connection if self.link is not None else None

    def send(self, subject: str, message: Msg) -> None:
        """Publish, if there is a connection yet; whatever matters is sent again anyway."""
        if self.paced is not None:
            self.paced.send(subject, message)
        else:
            self._send_now(subject, message)

    def _send_now(self, subject: str, message: Msg) -> None:
        if self.link is not None:
            self.link.send(subject, message)

    def together(self) -> AbstractContextManager[None]:
        """What is sent within goes at its end, at once where that can be."""
        return nullcontext() if self.link is None or self.paced is not None else self.link.connection.together()

    def set_pace(self, throttle: Throttle) -> None:
        """Hold these rates for all that comes and goes. To be called when they are others."""
        from fallow.agent.limits.messages import repaced

        self.blobs.pace = throttle
        self.paced = repaced(self.paced, throttle, self._send_now)

    def _send_hand_in(self, hand_in: HandIn) -> float:
        subject = subjects.job(hand_in.job_id)
        if self.paced is not None:
            return self.paced.send(subject, hand_in)
        self.send(subject, hand_in)
        return 0.0

    async def _store_result(self, job_id: JobId, path: str, digest: str, size: int) -> None:
        job = self.jobs.get(job_id)
        if self.workers.confinement is not None:
            taken = await self.desk.take_result(path, digest, size)
            await self.blobs.store(taken, digest, size, job is None or job.spec.detached, Purpose.RESULTS)
            self.desk.stored(path)
            return
        await self.blobs.store(path, digest, size, job is None or job.spec.detached, Purpose.RESULTS)

    # ------------------------------------------------------------ life

    def start_workers(self) -> None:
        """Warm up: a zygote, and a worker for each slot, in the background."""
        if self.default_kind is None:
            self.workers.warm(own_kind())
            return
        for slot in self.slots:
            slot.lanes[0].want_worker(self.default_kind)

    def _interpreters_in_use(self) -> set[str]:
        jobs = (self.jobs.get(job_id) for job_id in jobs_in_use(self.slots))
        return {job.kind.python for job in jobs if job is not None}

    # ------------------------------------------------------------ the owner's return

    def preempt(self, slots: Iterable[int] | None, reason: str, grace_s: float) -> None:
        """Stop these slots (None: all) now, for the machine's owner: their tasks get notice, what is done is handed
        in, and `grace_s` from now no worker of theirs is left, nor anything that one has started. Nothing runs there
        before `allow`. Said again, only the reason counts."""
        self._pauses.preempt(slots, reason, grace_s)
        self.beat()

    def allow(self, slots: Iterable[int] | None) -> None:
        """These slots (None: all) may run again."""
        if self._pauses.allow(slots):
            self.beat()

    @property
    def is_at_work(self) -> bool:
        """Whether a slot belongs to a job: something runs, or is about to. A node that has come to rest stays so until
        it is given work: that costs no look at slots."""
        return not self._rhythm.at_rest and any(slot.machine.spec is not None or slot.is_busy for slot in self.slots)

    @property
    def paused(self) -> str:
        """Why nothing runs here now; '' where something may."""
        return self._pauses.words

    def slot_stopped(self, number: int) -> None:
        """All workers of a slot that was preempted are gone."""
        for callback in self.after_stop:
            callback(number)

    def withhold(self, uuids: frozenset[str]) -> None:
        """The machine's owner uses these GPUs (and no others): nobody is given one, and the pool is told."""
        if self.gpus.withhold(uuids):
            for slot in self.slots:
                slot.look_at_gpus()
            # Later, in the same breath as the slots that are stopped for it: the pool is to take the job from these.
            asyncio.get_running_loop().call_soon(self.beat)

    def free_gpus(self) -> None:
        """Have idle workers give up devices that their slots do not need any more."""
        for slot in self.slots:
            for lane in slot.lanes.values():
                lane.release_idle_gpus()

    def _look_at_gpus(self) -> None:
        """Tenants of parts keep to them; and what has become of the devices since the last look is told."""
        self.gpus.guard(tenants_of(lane for slot in self.slots for lane in slot.lanes.values()))
        devices = self.gpus.devices
        if devices != self.spec.devices:
            self.spec = msgspec.structs.replace(self.spec, devices=devices)
            self._tell_spec = True

    async def serve(self, link: Link, ended: asyncio.Event, ready: Callable[[], None] | None) -> None:
        """Take part in the pool until `ended` is set."""
        self.link = link
        link.connection.on_reconnect.append(self._reconnected)
        await link.listen(self.node_id, self.on_call)
        self.beat()
        await link.connection.flush()
        if ready is not None:
            ready()
        collect_rarely()
        link.connection.pace()
        housekeeping = asyncio.ensure_future(keep_house(self, self._home))
        self.pulse.add(self._second)
        self.pulse.add(self._look_at_server)
        self.pulse.within(self._rhythm.wait_s(time.monotonic()))
        try:
            await ended.wait()
        finally:
            self.pulse.remove(self._second)
            self.pulse.remove(self._look_at_server)
            housekeeping.cancel()

    def _second(self) -> float:
        now = time.monotonic()
        rested = self._rhythm.at_rest
        if not rested:
            self._rhythm.rests(not self.is_at_work and not len(self.outbox), now)
        if self._rhythm.is_due(now):
            self.beat()
        self._said_away = say_away(self._rhythm.was_heard and self._rhythm.is_away(now), self._said_away)
        if now >= self._next_sweep_s:
            self._next_sweep_s = now + SWEEP_EVERY_S
            self._sweeping = asyncio.ensure_future(self.workers.sweep(self.default_kind))
        elif rested and self._rhythm.at_rest:
            return self._rhythm.wait_s(time.monotonic())
        self.outbox.resend_due()
        self._look_at_gpus()
        for slot in self.slots:
            slot.tick()
        if self.workers.confinement is not None:
            end_sandboxes(self)
        return self._rhythm.wait_s(time.monotonic())

    def _look_at_server(self) -> float | None:
        """Whether the server is still there. While others may wait for what runs here, more often than at rest."""
        now = time.monotonic()
        if self.connection is not None and now - self._looked_s >= LOOK_LEAST_S:
            self._looked_s = now
            self.connection.keep_alive()
        if not self.is_at_work or self.connection is None:
            return None
        return max(self._looked_s + LOOK_LEAST_S - now, self.connection.look_in_s(PING_OFTEN_S))

    def beat(self) -> None:
        """Say what this node holds."""
        now = time.monotonic()
        draining = self._drained_by_operator or self._drained_by_owner or self._ending
        beat = self._beats.next(now, self._tell_spec, draining)
        self._tell_spec = False
        with self.together():
            self.send(subjects.BEAT, beat)
            if not self._rhythm.at_rest:
                self._beats.tell_owners(beat=True, anew=self._anew_beats > 0)
        self.pulse.wants(self._second, self._rhythm.wait_s(now))
        self._anew_beats = max(0, self._anew_beats - 1)

    # ------------------------------------------------------------ messages

    def on_message(self, message: Any) -> None:
        """A message to this node."""
        match message:
            case Lease():
                self._leased(message, self._accepts(message))
            case HandInAck():
                if self._accepts(message):
                    self.outbox.acknowledge(message.job_id, message.acks)
            case Assign():
                if (slot := self._slot(message.slot)) is not None and not self._ending:
                    for callback in self.on_work:
                        callback()
                    rested = self._rhythm.at_rest
                    self._rhythm.rests(False, time.monotonic())
                    slot.assigned(message)
                    if rested:
                        self.beat()  # the pool waits for a word of who was silent
                    self.pulse.within(PING_OFTEN_S)
            case TakeBack():
                if self._accepts(message) and (slot := self._slot(message.slot)) is not None:
                    slot.taken_back(message)
            case Revoke():
                if self._accepts(message):
                    self._revoke(message)
            case NameLeases():
                if self._accepts(message):
                    self._beats.tell_owners(only=message.job_id, anew=True)
                    self._send_all_again(message.job_id)
            case BeatAck():
                self._beat_acknowledged(message)
            case LeaderHere():
                self._tell_spec = True
                self.pulse.wants(self._second, self._rhythm.is_awaited(time.monotonic()))
            case _:
                log.debug("a message that is not for agents: %s", type(message).__name__)

    def on_call(self, message: Any) -> None:
        """A message from a client: a call for a slot of its job, and nothing that only an owner may say."""
        if isinstance(message, Lease) and is_call_token(message.token) and not message.acks:
            slot, epoch = self._slot(message.slot), self.jobs.epoch(message.job_id)
            if message.epoch < epoch and slot is not None:
                # Its client has not heard of the next owner yet, which takes the call for one of its own.
                if slot.machine.has_had(message.job_id, message.token):
                    return
                message = msgspec.structs.replace(message, epoch=epoch, token=(epoch, message.token[1]))
            self._leased(message, True)

    def _leased(self, message: Lease, accepted: bool) -> None:
        if self.paced is not None:
            self.paced.came(message)
        if self._rhythm.at_rest:
            self._rhythm.rests(False, time.monotonic())
            self.pulse.within(PING_OFTEN_S)
        if accepted:
            self.outbox.acknowledge(message.job_id, message.acks)
            if (slot := self._slot(message.slot)) is not None:
                slot.leased(message)

    def _accepts(self, message: Lease | HandInAck | TakeBack | Revoke | NameLeases) -> bool:
        return self.jobs.accept_epoch(message.job_id, message.epoch)

    def _slot(self, number: int) -> Slot | None:
        return self.slots[number] if 0 <= number < len(self.slots) else None

    def _revoke(self, message: Revoke) -> None:
        for slot in self.slots:
            slot.revoked(message)
        for token in message.tokens:
            self.outbox.forget_lease(message.job_id, token)
        if not message.tokens:
            self.jobs.forget(message.job_id)
            self.pages.forget_job(message.job_id)
            self.outbox.forget_job(message.job_id)
            self.logs.forget_job(message.job_id)

    def _beat_acknowledged(self, message: BeatAck) -> None:
        now = time.monotonic()
        again = self._rhythm.acknowledged(message, now)
        self._said_away = say_away(False, self._said_away)
        if self._rhythm.at_rest:
            self.pulse.wants(self._second, self._rhythm.wait_s(now))
        if message.drain != self._drained_by_operator:
            self._drained_by_operator = message.drain
            log.warning("the operator %s", "wants this node to take no more work" if message.drain else "resumes it")
            self._drain_slots()
        if message.want_spec and not self._tell_spec:
            self._tell_spec = True
            self.beat()
        if again:
            self._send_all_again()

    def _reconnected(self) -> None:
        log.info("connected again")
        self._tell_spec = True
        self._anew_beats = 2  # an owner that lost the same server may not be back yet, and hears the second one
        self.beat()
        self.pulse.within(self._rhythm.hurry(time.monotonic()))
        self._send_all_again()

    def _send_all_again(self, only: JobId | None = None) -> None:
        self.outbox.resend_all(only)
        for slot in self.slots:
            if only in (None, slot.machine.job_id):
                slot.pull_again()

    # ------------------------------------------------------------ the owner of the machine

    def drain_by_owner(self, on: bool) -> None:
        """Finish what runs and take no more, or take work again."""
        self._drained_by_owner = on
        self._drain_slots()

    def _drain_slots(self) -> None:
        drained = self._drained_by_operator or self._drained_by_owner or self._ending or bool(self.fullness.words)
        for slot in self.slots:
            slot.drain(drained)
        self.beat()

    def offer(self, spec: NodeSpec) -> None:
        """Tell the pool what this node offers from now on."""
        if spec != self.spec:
            self.spec = spec
            self._tell_spec = True
            self.pulse.wants(self._second, self._rhythm.hurry(time.monotonic()))

    def gpu_uuids(self, lane: Lane) -> tuple[str, ...]:
        """The GPUs that the lane's worker has."""
        return self.gpus.uuids(lane.seat) if lane.seat is not None else ()

    # ------------------------------------------------------------ the end

    async def drain(self, hurry: asyncio.Event) -> None:
        """Hand in what is done and give back the rest; `hurry` cuts all waiting short."""
        self._ending = True
        for slot in self.slots:
            slot.drain(True)
            slot.hand_in_all()
        await until(lambda: not self.is_busy, REPORT_WAIT_S, hurry)
        self.logs.flush()
        if self.link is not None and self.link.is_connected:
            await until(lambda: len(self.outbox) == 0, ACKNOWLEDGE_WAIT_S, hurry)
        if self.paced is not None:
            self.paced.flush()
        self._beats.tell_owners(gone=True)
        self.send(subjects.BEAT, Bye(self.node_id, self.session))

    async def close(self) -> None:
        """End workers and zygotes, disconnect, and leave nothing behind."""
        for slot in self.slots:
            slot.close()
        await self.jobs.close()
        await self.environments.close()
        await self.outbox.close()
        await self.gpus.close()
        if self.link is not None:
            await self.link.close()
        await self.blobs.close()
        await self.workers.close()
        await asyncio.to_thread(shutil.rmtree, self.scratch, True)
