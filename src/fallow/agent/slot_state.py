"""The decisions of one slot: which lease runs, which waits, when to pull, what to hand in. No IO, no clock.

Theory of operation. A slot is assigned to at most one job. It has a *lane* (a place for a worker and the lease that
it runs), a short queue of leases that came ahead, and at most one *standing pull*. A task that waits for nested work
lends its slot: then its lane counts as not there, and another lane may be opened (slot_lanes). slot_pulls says when a
pull is made.

Every event returns effects in the order in which they are to be done: the next lease begins before the last one is
handed in, so that the worker does not wait for messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil

import msgspec

from fallow.agent.hand_ins import make_hand_ins
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
from fallow.agent.slot_lanes import LEND_LIMIT, Lane, Lanes
from fallow.agent.slot_pulls import Pulls
from fallow.agent.worker_api import Report
from fallow.model.ids import Interval, JobId, NodeId, Token, is_call_token
from fallow.model.job import JobKind, JobSpec
from fallow.model.parts import Death
from fallow.wire.messages import Lease

LEND_GRACE_S = 0.05
"""So long a lent slot waits for an assignment to the nested job before it goes on with its own."""
QUEUE_LIMIT = 4
RECENT_LIMIT = 128


class SlotMachine:
    """See the module. `now` is the caller's monotonic clock, in seconds."""

    def __init__(self, node_id: NodeId, slot: int) -> None:
        self.node_id = node_id
        self.slot = slot
        self.spec: JobSpec | None = None
        self.is_prepared = False
        self.draining = False
        self.paused = False
        """The machine's owner has it back."""
        self.lacks_devices = False
        """The machine's owner uses those that the job needs."""
        self.queue: deque[Held] = deque()
        self.lanes = Lanes()
        self._pulls = Pulls()
        self._assign_key = (-1, -1)
        self._recent: dict[tuple[JobId, Token], None] = {}
        self._lent_until = 0.0

    # ------------------------------------------------------------ what is known

    @property
    def job_id(self) -> JobId | None:
        return self.spec.job_id if self.spec else None

    @property
    def _takes_calls(self) -> bool:
        return self.spec is not None and self.spec.kind is JobKind.CALLS

    @property
    def is_shut(self) -> bool:
        """It takes no work."""
        return self.draining or self.paused or self.lacks_devices

    @property
    def pull(self) -> StandingPull | None:
        """The newest, until it is answered."""
        return self._pulls.standing

    def held(self) -> list[Held]:
        """Every lease of the slot, the running ones first."""
        return [lane.held for lane in self.lanes if lane.held is not None and not lane.held.revoked] + list(self.queue)

    def check(self) -> None:
        """Assert what always holds. For tests."""
        assert len(self.lanes) <= LEND_LIMIT + 1
        assert self.lanes.lent_count <= LEND_LIMIT
        assert len(self.queue) <= QUEUE_LIMIT
        if self.queue and self.is_prepared and not self.is_shut:
            assert self.lanes.active is not None or self.lanes.lent_count, "a queued lease and nobody busy"
        if self.pull is not None:
            assert self.is_prepared
            assert not self.is_shut
            assert self.pull.job_id == self.job_id
        keys = [(held.job_id, held.token) for held in self.held()]
        assert len(keys) == len(set(keys))

    # ------------------------------------------------------------ assignments

    def assign(self, epoch: int, seq: int, spec: JobSpec | None, now: float) -> list[Effect]:
        """The slot is to work for this job (None: for none)."""
        if (epoch, seq) < self._assign_key:
            return []
        repeated = (epoch, seq) == self._assign_key
        self._assign_key = (epoch, seq)
        if spec is not None and self.spec is not None and spec.job_id == self.spec.job_id:
            # The same job, perhaps under a new owner, which does not know of the pull that stands.
            return [] if repeated else self.pull_again(now)
        if spec is None and self.spec is None:
            return []
        return self.turn_to(spec)

    def turn_to(self, spec: JobSpec | None) -> list[Effect]:
        """Work for another job, or for none."""
        effects = self._leave_job()
        self.spec = spec
        if spec is not None:
            effects += self._cut_others(spec.job_id)
        if spec is not None and not self.is_shut:
            effects.append(Prepare(spec))
        return effects

    def _cut_others(self, job_id: JobId) -> list[Effect]:
        """What is not begun of other jobs' leases goes back: this one's tasks wait for a task, and not for a lease."""
        return [
            Cut(lane.index, lane.held, 1.0)
            for lane in self.lanes
            if lane.held is not None and lane.held.job_id != job_id and lane.held.may_be_cut and not lane.waiting
        ]

    def prepared(self, job_id: JobId, now: float) -> list[Effect]:
        """Environment and function are ready."""
        if job_id != self.job_id or self.is_prepared or self.is_shut:
            return []
        self.is_prepared = True
        effects: list[Effect] = []
        self._begin_next(effects, now)
        return self._with_pull(effects, now)

    def refused(self, job_id: JobId, kind: str, message: str, fatal: bool) -> list[Effect]:
        """The job cannot run here. It is left alone until it is assigned anew."""
        effects: list[Effect] = [Refuse(job_id, kind, message, fatal)]
        if job_id == self.job_id:
            effects += self._leave_job()
        return effects

    def _leave_job(self) -> list[Effect]:
        effects: list[Effect] = []
        if self.pull is not None:
            effects.append(SendUnpull(self.pull.job_id, self.pull.seq))
            self._pulls.standing = None
        effects += [self._give_back_whole(held) for held in self.queue]
        self.queue.clear()
        self.spec = None
        self.is_prepared = False
        return effects

    def drain(self, on: bool, now: float) -> list[Effect]:
        """Take no more work (or take it again): what runs goes on, what waits goes back."""
        was_shut, self.draining = self.is_shut, on
        return self._shut_or_open(was_shut)

    def preempt(self) -> list[Effect]:
        """The owner of the machine wants it back: nothing runs from soon on, until `allow`. What waits goes back now,
        what runs is given notice."""
        was_shut, self.paused = self.is_shut, True
        effects = self._shut_or_open(was_shut)
        return effects + [Preempt(lane.index, lane.held) for lane in self.lanes if lane.held is not None]

    def allow(self) -> list[Effect]:
        was_shut, self.paused = self.is_shut, False
        return self._shut_or_open(was_shut)

    def lack_devices(self, on: bool) -> list[Effect]:
        """The machine's owner uses devices without which the job cannot run here (or does so no longer): what waits
        goes back."""
        was_shut, self.lacks_devices = self.is_shut, on
        return self._shut_or_open(was_shut)

    def _shut_or_open(self, was_shut: bool) -> list[Effect]:
        if was_shut == self.is_shut:
            return []
        spec = self.spec
        if self.is_shut:
            effects = self._leave_job()
            self.spec = spec
            return effects
        self.is_prepared = False
        return [Prepare(spec)] if spec is not None else []

    # ------------------------------------------------------------ leases

    def lease(self, lease: Lease, now: float) -> list[Effect]:
        """A range for this slot. One that is held or was, is not new."""
        held = Held(lease)
        if self.has_had(held.job_id, held.token):
            return []
        self._pulls.answered(held.job_id, lease.pull_seq)
        is_ours = held.job_id == self.job_id and (self._takes_calls or not is_call_token(held.token))
        if not is_ours or self.is_shut or len(self.queue) >= QUEUE_LIMIT:
            return self._with_pull([self._give_back_whole(held)], now)
        self.queue.append(held)
        effects: list[Effect] = []
        self._begin_next(effects, now)
        return self._with_pull(effects, now)

    def has_had(self, job_id: JobId, token: Token) -> bool:
        """Whether it is held, or was lately."""
        key = (job_id, token)
        return key in self._recent or any((held.job_id, held.token) == key for held in self.held())

    def lack_pages(self, job_id: JobId, token: Token, now: float) -> list[Effect]:
        """Pages of a lease cannot be had here (any more): it goes back, not begun."""
        for held in self.queue:
            if held.job_id == job_id and held.token == token:
                self.queue.remove(held)
                return self._with_pull([self._give_back_whole(held)], now)
        lane = self.lanes.of(job_id, token)
        if lane is None or lane.held is None:
            return []
        held, lane.held = lane.held, None
        effects: list[Effect] = []
        self._begin_next(effects, now)
        if not held.revoked:
            effects.append(self._give_back_whole(held))
        return self._with_pull(effects, now)

    def _begin_next(self, effects: list[Effect], now: float) -> None:
        if not self.queue or not self.is_prepared or self.lanes.active is not None:
            return
        if self.lanes.lent_count and now < self._lent_until:
            effects.append(Later(self._lent_until - now + 0.001))
            return
        lane = self.lanes.open()
        lane.held = self.queue.popleft()
        lane.began_s = now
        effects.append(Begin(lane.index, lane.held))

    def reported(self, index: int, report: Report, now: float) -> list[Effect]:
        """The worker of lane `index` hands in (part of) its order."""
        lane = self.lanes.at(index)
        held = lane.held if lane else None
        token = (report.token[0], report.token[1])
        if lane is None or held is None or held.token != token:
            return [Discard(report.files)] if report.files else []
        effects: list[Effect] = []
        if held.revoked:
            if report.files:
                effects.append(Discard(report.files))
            if report.ended:
                self._end(lane)
                self._begin_next(effects, now)
                return self._with_pull(effects, now)
            return effects
        give_back = tuple((start, min(stop, held.cut)) for start, stop in report.give_back if start < held.cut)
        for page in report.results:
            held.covered.add(page.start, page.stop)
        for start, stop in give_back:
            held.covered.add(start, stop)
        for later in report.retry_later:
            held.covered.add(later.index, later.index + 1)
        for death in report.deaths:
            held.covered.add(death.index, death.index + 1)
        if report.ended:
            # What a limit cut off was never begun; the worker does not speak of it.
            give_back += held.missing(held.start, held.cut)
            lane.last_took_s = now - lane.began_s
            self._end(lane)
            self._begin_next(effects, now)
        pull = self._next_pull(now) if report.ended else None
        effects += self._deliver(held, report, give_back, pull, report.deaths)
        self._ask_ahead_later(effects, now)
        return effects

    def died(self, index: int, token: Token | None, death: Death, now: float) -> list[Effect]:
        """The worker of lane `index` is gone, while it ran `token`. What it did not report is lost."""
        lane = self.lanes.at(index)
        held = lane.held if lane else None
        if lane is None or held is None or token is None or held.token != (token[0], token[1]):
            return []
        self._end(lane)
        effects: list[Effect] = []
        self._begin_next(effects, now)
        pull = self._next_pull(now)
        if held.revoked:
            if pull is not None:
                effects.append(SendPull(pull))
        else:
            effects += self._deliver(held, Report(held.token, ended=True), (), pull, deaths=(death,))
        self._ask_ahead_later(effects, now)
        return effects

    def preempted(self, index: int, token: Token, wasted_s: float, now: float) -> list[Effect]:
        """The worker of lane `index` was ended for the machine's owner, in the middle of `token`, or by one of its
        inputs, nobody knows which. That is no task's failure: what it did not report goes back. `wasted_s`: run time
        that is lost by that."""
        lane = self.lanes.at(index)
        held = lane.held if lane else None
        if lane is None or held is None or held.token != (token[0], token[1]):
            return []
        give_back = held.missing(held.start, held.cut)
        self._end(lane)
        effects: list[Effect] = []
        self._begin_next(effects, now)
        if held.revoked:
            return self._with_pull(effects, now)
        pull = self._next_pull(now)
        effects += self._deliver(held, Report(held.token, ended=True), give_back, pull, wasted_s=wasted_s)
        self._ask_ahead_later(effects, now)
        return effects

    def _end(self, lane: Lane) -> None:
        assert lane.held is not None
        self._remember(lane.held)
        lane.held = None
        lane.waiting = 0

    def retire_idle(self) -> list[Effect]:
        """Close the extra lanes that run nothing."""
        return [Retire(lane.index) for lane in self.lanes.close_idle()]

    # ------------------------------------------------------------ taking back

    def take_back(self, job_id: JobId, token: Token, share: float, now: float) -> list[Effect]:
        """The owner wants back what is not begun."""
        token = (token[0], token[1])
        for held in self.queue:
            if held.job_id == job_id and held.token == token:
                self.queue.remove(held)
                return self._with_pull([self._give_back_whole(held)], now)
        lane = self.lanes.of(job_id, token)
        if lane is None or lane.held is None or not lane.held.may_be_cut:
            return []
        return [Cut(lane.index, lane.held, share)]

    def plan_cut(self, held: Held, share: float, index: int) -> int:
        """Where to limit the worker, which is at task `index` (-1: before its first)."""
        begun = max(held.start, index + 1)
        stop = held.cut - ceil(max(0, held.cut - begun) * min(1.0, max(0.0, share)))
        held.asked = stop
        return stop

    def cut(self, held: Held, index: int) -> list[Effect]:
        """The limit holds and the worker is at task `index`: what lies behind both goes back."""
        if held.asked is None or held.revoked or self.lanes.of(held.job_id, held.token) is None:
            return []
        stop = max(held.asked, held.start, index + 1)
        give_back = held.missing(stop, held.cut)
        held.cut = min(held.cut, stop)
        held.asked = None
        for start, end in give_back:
            held.covered.add(start, end)
        return self._deliver(held, Report(held.token), give_back, None)

    # ------------------------------------------------------------ revoking

    def revoke(self, job_id: JobId, tokens: Iterable[Token], reason: str, now: float) -> list[Effect]:
        """Forget these leases at once; no tokens: all of the job, and the job."""
        wanted = {(token[0], token[1]) for token in tokens}
        effects: list[Effect] = []
        for held in [held for held in self.queue if held.job_id == job_id]:
            if not wanted or held.token in wanted:
                self.queue.remove(held)
                self._remember(held)
        for lane in self.lanes:
            held_now = lane.held
            if held_now is None or held_now.job_id != job_id or held_now.revoked:
                continue
            if not wanted or held_now.token in wanted:
                held_now.revoked = True
                lane.waiting = 0
                effects.append(Abort(lane.index, held_now, reason))
        if not wanted and job_id == self.job_id:
            self._pulls.standing = None
            self.spec = None
            self.is_prepared = False
        self._begin_next(effects, now)
        return self._with_pull(effects, now)

    # ------------------------------------------------------------ lending

    def lend(self, index: int, waiting: bool, now: float) -> tuple[bool, list[Effect]]:
        """A task waits for nested work (or does so no longer). Says whether its slot is lent meanwhile."""
        lane = self.lanes.at(index)
        if lane is None or lane.held is None:
            return False, []
        if not waiting:
            lane.waiting = max(0, lane.waiting - 1)
            if lane.waiting or self.pull is None or not self.pull.idle:
                return False, []
            return False, self.pull_again(now)
        if lane.held.revoked or (not lane.waiting and self.lanes.lent_count >= LEND_LIMIT):
            return False, []
        lane.waiting += 1
        if lane.waiting > 1:
            return True, []
        self._lent_until = now + LEND_GRACE_S
        effects: list[Effect] = []
        self._begin_next(effects, now)
        return True, self._with_pull(effects, now)

    # ------------------------------------------------------------ pulls

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: begin what was put off, pull again if nobody answered."""
        self._pulls.is_ahead_due = False
        effects: list[Effect] = []
        self._begin_next(effects, now)
        if self._pulls.is_stale(now):
            return effects + self.pull_again(now)
        return self._with_pull(effects, now)

    def pull_again(self, now: float) -> list[Effect]:
        """Ask anew: the pull that stands, or its answer, may be lost. A new number, since the owner gives no second
        answer to one that it has answered."""
        self._pulls.standing = None
        return self._with_pull([], now)

    def _job_to_pull(self) -> JobId | None:
        """The job of which it would take a lease now."""
        return self.job_id if self.is_prepared and not self.is_shut and not self.queue else None

    def _next_pull(self, now: float) -> StandingPull | None:
        return self._pulls.next(self._job_to_pull(), self.lanes.active, now)

    def _with_pull(self, effects: list[Effect], now: float) -> list[Effect]:
        pull = self._next_pull(now)
        if pull is not None:
            effects.append(SendPull(pull))
        self._ask_ahead_later(effects, now)
        return effects

    def _ask_ahead_later(self, effects: list[Effect], now: float) -> None:
        delay_s = self._pulls.ahead_in(self._job_to_pull(), self.lanes.active, now)
        if delay_s is not None:
            effects.append(Later(delay_s))

    # ------------------------------------------------------------ hand-ins

    def _remember(self, held: Held) -> None:
        self._recent[held.job_id, held.token] = None
        while len(self._recent) > RECENT_LIMIT:
            del self._recent[next(iter(self._recent))]

    def _give_back_whole(self, held: Held) -> Deliver:
        self._remember(held)
        give_back = held.missing(held.start, held.cut)
        return make_hand_ins(self.node_id, self.slot, held, Report(held.token, ended=True), give_back)[0]

    def _deliver(
        self,
        held: Held,
        report: Report,
        give_back: tuple[Interval, ...],
        pull: StandingPull | None,
        deaths: tuple[Death, ...] = (),
        wasted_s: float = 0.0,
    ) -> list[Effect]:
        """The hand-ins of a report; the pull goes with the last of them, or alone where it is another job's."""
        delivers = make_hand_ins(self.node_id, self.slot, held, report, give_back, deaths, wasted_s)
        if pull is None:
            return [*delivers]
        if pull.job_id != held.job_id:
            return [*delivers, SendPull(pull)]
        return [*delivers[:-1], msgspec.structs.replace(delivers[-1], pull=pull)]
