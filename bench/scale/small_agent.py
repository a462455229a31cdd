"""An agent without workers: real connection, beats, pulls and hand-ins by the agent's own decisions (slot_state);
running a range is a timer, and every task returns None."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterable
from functools import lru_cache

import blake3
import msgspec

from bench.scale.link import SmallLink
from fallow.agent.named import Named
from fallow.agent.slot_effects import Abort, Begin, Cut, Deliver, Effect, Held, Later, Prepare, SendPull, SendUnpull
from fallow.agent.slot_state import SlotMachine
from fallow.agent.worker_api import Report
from fallow.core.presence import LEAST_JITTER
from fallow.model.ids import Digest, JobId, NodeId, Token, new_id
from fallow.model.job import Blob
from fallow.model.node import NodeSpec
from fallow.model.parts import HeldLease, ResultPage
from fallow.wire import messages as wire
from fallow.wire import subjects
from fallow.wire.page import encode_results

REPEAT_S = 5.0
SLOW_S = 0.01


class Tally:
    """What all agents of a process saw."""

    def __init__(self) -> None:
        self.leases = 0
        self.tasks = 0
        self.sent = 0
        self.repeated = 0
        self.idle_s: list[float] = []
        """From an idle slot's pull to its lease, seconds."""
        self.ahead_s: list[float] = []
        """From a pull that asks ahead to its lease."""
        self.ack_s: list[float] = []
        self.slow: list[tuple[float, float, str, int]] = []
        """Of leases that took SLOW_S: (how long, when the pull was sent, node, the pull's number)."""
        self.busy_s = 0.0
        self.since_s = time.monotonic()

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


class SmallAgent:
    """One node with one slot."""

    def __init__(self, number: int, pythons: tuple[str, ...], task_s: float, tally: Tally) -> None:
        self.node_id = NodeId(new_id("node", os.urandom))
        self.session = new_id("run", os.urandom)
        self.name = f"small-{number}"
        self.spec = NodeSpec(
            self.node_id, self.name, 1, 1, 1 << 32, 1 << 36, "linux", pythons, "0.1", host=self.name, pid=number
        )
        self.machine = SlotMachine(self.node_id, 0)
        self._named = Named(time.monotonic)
        self.task_s = task_s
        self.tally = tally
        self.link: SmallLink | None = None
        self._loop = asyncio.get_running_loop()
        self._seq = 0
        self._interval_s = wire.BEAT_INTERVAL_S
        self._heard = False
        self._tell_spec = True
        self._is_fresh = True
        self._beating: asyncio.TimerHandle | None = None
        self._running: tuple[Held, float, asyncio.TimerHandle] | None = None
        self._pulled_at: dict[int, tuple[float, bool]] = {}
        self._unacknowledged: dict[tuple[JobId, Token, int], tuple[wire.HandIn, float]] = {}

    def begin(self, link: SmallLink) -> None:
        self.link = link
        link.listen(subjects.node(self.node_id))
        link.listen(subjects.NODES)
        self.beat()

    @property
    def is_running(self) -> bool:
        return self._running is not None

    def end(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        if self._running is not None:
            self._running[2].cancel()
        if self.link is not None:
            self.link.close()

    # ------------------------------------------------------------ beats

    def beat(self) -> None:
        self._seq += 1
        interval_s = self._interval_s if self._heard else min(1.0, 0.2 * 1.3**self._seq)
        self._beating = self._loop.call_later(interval_s * random.uniform(LEAST_JITTER, 1.0), self._timer)
        spec, self._tell_spec = (self.spec if self._tell_spec else None), False
        slots = (wire.SlotState(0, self.machine.job_id),)
        busy = 1 if self._running is not None else 0
        self._send(
            subjects.BEAT,
            wire.Beat(self.node_id, self.session, self._seq, slots, busy, spec=spec, interval_s=self._interval_s),
        )
        self._name_leases(beat=True)

    def _timer(self) -> None:
        self.beat()
        now = time.monotonic()
        for key, (hand_in, sent) in list(self._unacknowledged.items()):
            if now - sent > REPEAT_S:
                self._unacknowledged[key] = (hand_in, now)
                self.tally.repeated += 1
                self._send(subjects.job(hand_in.job_id), hand_in)
        self.perform(self.machine.tick(now))

    def _name_leases(self, only: JobId | None = None, beat: bool = False) -> None:
        by_job: dict[JobId, list[HeldLease]] = {}
        if self.machine.job_id is not None:
            by_job[self.machine.job_id] = []
        for held in self.machine.held():
            index, elapsed = -1, 0.0
            if self._running is not None and self._running[0] is held:
                elapsed = time.monotonic() - self._running[1]
                index = min(held.stop - 1, held.start + int(elapsed / self.task_s))
                elapsed %= self.task_s
            lease = HeldLease(held.job_id, held.token, 0, held.start, held.stop, index, elapsed)
            by_job.setdefault(held.job_id, []).append(lease)
        named = {job_id: tuple(leases) for job_id, leases in by_job.items()}
        due = self._named.due(named, [self], self._interval_s, False) if beat else named
        for job_id, leases in named.items():
            if job_id in due and only in (None, job_id):
                message = wire.Held(job_id, self.node_id, self.name, self.session, leases, interval_s=self._interval_s)
                self._send(subjects.job(job_id), message)

    # ------------------------------------------------------------ messages

    def _acknowledged(self, message: wire.Lease | wire.HandInAck, now: float) -> None:
        for token, seq in message.acks:
            entry = self._unacknowledged.pop((message.job_id, (token[0], token[1]), seq), None)
            if entry is not None:
                self.tally.ack_s.append(now - entry[1])

    def receive(self, message: object) -> None:
        now = time.monotonic()
        match message:
            case wire.Lease():
                self._acknowledged(message, now)
                self.tally.leases += 1
                pulled = self._pulled_at.pop(message.pull_seq, None)
                if pulled is not None:
                    if now - pulled[0] >= SLOW_S:
                        self.tally.slow.append((now - pulled[0], pulled[0], self.node_id, message.pull_seq))
                    (self.tally.idle_s if pulled[1] else self.tally.ahead_s).append(now - pulled[0])
                self.perform(self.machine.lease(message, now))
            case wire.HandInAck():
                self._acknowledged(message, now)
            case wire.Assign():
                self.perform(self.machine.assign(message.epoch, message.seq, message.spec, now))
            case wire.TakeBack():
                self.perform(self.machine.take_back(message.job_id, message.token, message.share, now))
            case wire.Revoke():
                self.perform(self.machine.revoke(message.job_id, message.tokens, message.reason, now))
                if not message.tokens:
                    self._unacknowledged = {k: v for k, v in self._unacknowledged.items() if k[0] != message.job_id}
            case wire.NameLeases():
                self._name_leases(message.job_id)
            case wire.BeatAck():
                self._heard = True
                self._interval_s = message.interval_s
                if message.want_spec and not self._tell_spec:
                    self._tell_spec = True
                    if self._beating is not None:
                        self._beating.cancel()
                    self.beat()

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Begin(held=held):
                    self._begin(held)
                case Deliver():
                    self._deliver(effect)
                case SendPull(pull=pull):
                    self._pulled_at[pull.seq] = (time.monotonic(), pull.idle)
                    self._send(subjects.job(pull.job_id), wire.Pull(pull.job_id, self.node_id, 0, pull.seq, pull.idle))
                case SendUnpull(job_id=job_id, seq=seq):
                    self._send(subjects.job(job_id), wire.Unpull(job_id, self.node_id, 0, seq))
                case Prepare(spec=spec):
                    self.perform(self.machine.prepared(spec.job_id, time.monotonic()))
                case Later(delay_s=delay_s):
                    self._loop.call_later(delay_s, lambda: self.perform(self.machine.tick(time.monotonic())))
                case Cut(held=held, share=share):
                    if self._running is not None and self._running[0] is held:
                        index = self._index(held)
                        self.machine.plan_cut(held, share, index)
                        self.perform(self.machine.cut(held, index))
                        self._again(held)
                case Abort(held=held):
                    if self._running is not None and self._running[0] is held:
                        self._finish(held)
                case _:
                    pass

    # ------------------------------------------------------------ running

    def _begin(self, held: Held) -> None:
        length_s = (held.cut - held.start) * self.task_s
        if self._is_fresh:
            # Nodes that get their first lease in one moment would otherwise hand in together for ever.
            self._is_fresh = False
            length_s += random.uniform(0.0, length_s)
        timer = self._loop.call_later(min(length_s, held.budget_s), self._finish, held)
        self._running = (held, time.monotonic(), timer)

    def _again(self, held: Held) -> None:
        """The lease was cut short: it ends earlier."""
        assert self._running is not None
        _, began, timer = self._running
        timer.cancel()
        left = began + min((held.cut - held.start) * self.task_s, held.budget_s) - time.monotonic()
        self._running = (held, began, self._loop.call_later(max(0.0, left), self._finish, held))

    def _index(self, held: Held) -> int:
        assert self._running is not None
        return min(held.stop - 1, held.start + int((time.monotonic() - self._running[1]) / self.task_s))

    def _finish(self, held: Held) -> None:
        if self._running is None or self._running[0] is not held:
            return
        began = self._running[1]
        self._running[2].cancel()
        self._running = None
        run_s = time.monotonic() - began
        done = held.start if held.revoked else min(held.cut, held.start + max(1, round(run_s / self.task_s)))
        self.tally.busy_s += run_s
        self.tally.tasks += done - held.start
        pages = (ResultPage(held.start, done, held.start, _nones(done - held.start)),) if done > held.start else ()
        back = ((done, held.stop),) if done < held.stop and not held.revoked else ()
        report = Report(held.token, results=pages, give_back=back, ended=True, run_s=run_s)
        self.perform(self.machine.reported(0, report, time.monotonic()))

    def _deliver(self, deliver: Deliver) -> None:
        hand_in, pull, now = deliver.hand_in, deliver.pull, time.monotonic()
        self._unacknowledged[hand_in.job_id, hand_in.token, hand_in.seq] = (hand_in, now)
        if pull is not None:
            self._pulled_at[pull.seq] = (now, pull.idle)
            message = wire.Pull(pull.job_id, self.node_id, 0, pull.seq, pull.idle)
            hand_in = msgspec.structs.replace(hand_in, pull=message)
        self._send(subjects.job(hand_in.job_id), hand_in)

    def _send(self, subject: str, message: wire.Msg) -> None:
        self.tally.sent += 1
        if self.link is not None:
            self.link.send(subject, message)


@lru_cache(4096)
def _nones(count: int) -> Blob:
    data = b"".join(bytes(segment) for segment in encode_results([None] * count, {}))
    return Blob(Digest(blake3.blake3(data).hexdigest()), len(data), data)
