"""Progress of one job, as its owner keeps it: which tasks are waiting, leased, done; who gets what next.

Theory of operation. Every task number below `cursor` is in exactly one of: `done`, `todo`, `delayed` (not before a
time), `suspects` waiting to run alone, or the `pending` of a live lease (a doubled task is in the pending of two).
Hand-ins, beats, deaths and silences move numbers between these; `dispatch` hands out leases to waiting pulls. Every
event may be repeated: what it claims about numbers that are no longer where it thinks is ignored. `check` asserts
the partition; the tests call it after every event.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from fallow.core.effects import Drop, Effect, Ended, Grant, Record, RecordFault, Wake
from fallow.core.endgame import find_double, find_take_back
from fallow.core.intervals import IntervalSet
from fallow.core.lease import Delayed, LiveLease, Suspect, WaitingPull
from fallow.core.results import narrow
from fallow.core.sizing import CALLS_TARGET_S, MAP_TARGET_S, Rate, lease_size, target_s
from fallow.model.ids import Interval, NodeId, SlotKey, Token
from fallow.model.job import JobCounts, JobKind, JobSpec
from fallow.model.parts import Death, FaultPage, HeldLease, ResultPage, RetryLater
from fallow.model.states import JobEvent, JobState, job_transition

BUDGET_S = 2.0
LONE_DEATHS_LIMIT = 2
"""Deaths alone after which a task is poison."""
MEMORY_DEATHS_LIMIT = 2
NODE_LOSSES_LIMIT = 5
"""Nodes lost under one task after which it is failed."""
START_DEATHS_LIMIT = 6
"""Deaths outside any task, without a single result between them, after which the job is failed."""
UNNAMED_GRACE_S = 4.0
"""A lease that no beat of its node has named for so long never arrived."""
DELAYED_LIMIT = 100_000
PULLS_LIMIT = 100_000


class JobProgress:
    """The pure state of a job. All times are monotonic seconds of the caller."""

    def __init__(self, spec: JobSpec, epoch: int, *, hold_until: float = 0.0) -> None:
        self.spec = spec
        self.epoch = epoch
        self.state = JobState.OPEN
        self.reason = ""
        self.reason_kind = ""
        self.cursor = 0
        self.total = -1
        self.done = IntervalSet()
        self.todo = IntervalSet()
        self.delayed: list[Delayed] = []
        self.suspects: dict[int, Suspect] = {}
        self.waiting_suspects: list[int] = []
        self.leases: dict[Token, LiveLease] = {}
        self.by_slot: dict[SlotKey, list[Token]] = {}
        self.pulls: dict[SlotKey, WaitingPull] = {}
        self.pull_seqs: dict[SlotKey, int] = {}
        self.rates: dict[SlotKey, Rate] = {}
        self.rate = Rate()
        self.last_size: dict[SlotKey, int] = {}
        self.failed_count = 0
        self.retried = 0
        self.node_losses = 0
        self.worker_deaths = 0
        self.doubled_count = 0
        self.nodes: dict[NodeId, int] = {}
        self.slots = 1
        """How many slots the matcher has given the job (for sizing)."""
        self.leasing_stop = 1 << 62
        """No lease beyond this index: what the client's window allows."""
        self._hold_until = hold_until
        self._counter = 0
        self._size_cap = 0
        self._start_deaths = 0
        self._attempts: dict[int, int] = {}
        self._doubled: set[int] = set()

    # ------------------------------------------------------------ what is known

    @property
    def is_final(self) -> bool:
        return self.state.is_final

    @property
    def waiting_count(self) -> int:
        """Tasks that could run now if there were slots (delayed ones not counted)."""
        return len(self.todo) + len(self.waiting_suspects)

    @property
    def demand(self) -> int:
        """Slots that the job could use now."""
        if self.is_final:
            return 0
        most = self.waiting_count + sum(len(lease.pending) for lease in self.leases.values())
        if self.spec.max_leases:
            most = min(most, self.spec.max_leases)
        return most

    def counts(self) -> JobCounts:
        running = sum(1 for tokens in self.by_slot.values() if tokens)
        return JobCounts(
            inputs=self.cursor,
            done=len(self.done),
            failed=self.failed_count,
            running=running,
            retried=self.retried,
            node_losses=self.node_losses,
            worker_deaths=self.worker_deaths,
            doubled=self.doubled_count,
        )

    def story(self) -> str:
        return (
            f"{self.spec.job_id} epoch {self.epoch} {self.state}: cursor {self.cursor} of {self.total}, "
            f"done {len(self.done)}, todo {len(self.todo)}, leases {len(self.leases)}"
        )

    def check(self) -> None:
        """Assert that every task is in exactly one place. For tests: costs as much as the job is large."""
        seen = IntervalSet(self.done.intervals())
        count = len(self.done)

        def place(intervals: Iterable[Interval], what: str) -> None:
            nonlocal count
            for start, stop in intervals:
                fresh = sum(b - a for a, b in seen.add(start, stop))
                assert fresh == stop - start, f"{what} [{start}, {stop}) is elsewhere too: {self.story()}"
                count += fresh

        place(self.todo.intervals(), "todo")
        place(((d.index, d.index + 1) for d in self.delayed), "delayed")
        place(((i, i + 1) for i in self.waiting_suspects), "suspect")
        for lease in self.leases.values():
            if not lease.doubled:
                place(lease.pending.intervals(), f"lease {lease.token}")
        if not self.is_final:
            assert count == self.cursor, f"{self.cursor - count} tasks are nowhere: {self.story()}"

    # ------------------------------------------------------------ inputs and life

    def add_inputs(self, start: int, stop: int) -> bool:
        """Inputs [start, stop) are here (in order; a repeat is fine). False: there is a gap, send from `cursor`."""
        if start > self.cursor:
            return False
        if stop > self.cursor and not self.is_final:
            self.todo.add(self.cursor, stop)
            self.cursor = stop
        return True

    def add_call(self, start: int, stop: int) -> list[Interval]:
        """Calls arrive in any order and again: those new to us are taken. The numbers below `cursor` that never
        came are done as far as we are concerned until they come."""
        if start > self.cursor:
            self.done.add(self.cursor, start)
            self.cursor = start
        fresh: list[Interval] = []
        if stop > self.cursor:
            fresh.append((self.cursor, stop))
            self.todo.add(self.cursor, stop)
            self.cursor = stop
        return fresh

    def reopen_call(self, index: int) -> None:
        """A call that we took for done (see add_call, or its answer is gone) came again: it is to run."""
        if self.done.remove(index, index + 1):
            self.todo.add(index, index + 1)

    def end_inputs(self, total: int) -> list[Effect]:
        """No task beyond `total` will come."""
        if self.state is JobState.OPEN:
            self.state = job_transition(self.state, JobEvent.END_INPUTS, self.story())
            self.total = total
        return self._maybe_finish()

    def fail(self, reason: str, kind: str = "") -> list[Effect]:
        return self._end(JobEvent.FAIL, reason, kind)

    def cancel(self, reason: str, kind: str = "cancelled") -> list[Effect]:
        return self._end(JobEvent.CANCEL, reason, kind)

    def restore(self, *, done: Iterable[Interval], cursor: int, total: int, state: JobState, failed: int) -> None:
        """Take up what the store knows; everything not done is to do (leases are adopted from beats)."""
        self.cursor = cursor
        self.total = total
        self.state = state
        self.failed_count = failed
        for start, stop in done:
            self.done.add(start, stop)
        for start, stop in self.done.gaps(0, cursor):
            self.todo.add(start, stop)

    def retry_failed(self, intervals: Sequence[Interval]) -> None:
        """A new generation: these tasks are to run again."""
        if self.state is JobState.SUCCEEDED:
            self.state = job_transition(self.state, JobEvent.RETRY_FAILED, self.story())
            self.reason = ""
        for start, stop in intervals:
            for a, b in self.done.remove(start, stop):
                self.todo.add(a, b)
                for index in range(a, b):
                    self.suspects.pop(index, None)
        self.failed_count = 0

    # ------------------------------------------------------------ pulls and leases

    def pull(self, slot: SlotKey, seq: int, idle: bool, pages: Iterable[int], now: float) -> None:
        """A slot wants a lease; its newest pull counts."""
        if seq <= self.pull_seqs.get(slot, -1) and slot not in self.pulls:
            return
        if seq < self.pull_seqs.get(slot, -1) or (slot not in self.pulls and len(self.pulls) >= PULLS_LIMIT):
            return
        self.pull_seqs[slot] = seq
        old = self.pulls.get(slot)
        at = old.at if old and old.idle == idle else now
        self.pulls[slot] = WaitingPull(slot, seq, idle, frozenset(pages), at)

    def unpull(self, slot: SlotKey, seq: int) -> None:
        if seq >= self.pull_seqs.get(slot, -1):
            self.pull_seqs[slot] = seq
            self.pulls.pop(slot, None)

    def dispatch(self, now: float) -> list[Effect]:
        """Hand out leases to waiting pulls, idle slots first; near the end take back and double."""
        effects: list[Effect] = []
        if self.is_final:
            self.pulls.clear()
            return effects
        if now < self._hold_until:
            return [Wake(self._hold_until)]
        self._release_delayed(now)
        if self.pulls and (self.todo or self.waiting_suspects):
            for pull in sorted(self.pulls.values(), key=lambda p: (not p.idle, p.at)):
                if self.spec.max_leases and len(self.leases) >= self.spec.max_leases:
                    break
                lease = self._take_suspect(pull, now) or self._take_range(pull, now)
                if lease is None:
                    if not self.waiting_suspects:
                        break
                    continue
                effects.append(self._grant(lease, pull))
        if not self.todo and not self.waiting_suspects:
            idle = [pull for pull in self.pulls.values() if pull.idle]
            if idle:
                effects += self._endgame(idle, now)
        if self.delayed and self.pulls:
            effects.append(Wake(self.delayed[0].not_before))
        return effects

    def _grant(self, lease: LiveLease, pull: WaitingPull) -> Grant:
        del self.pulls[pull.slot]
        self.leases[lease.token] = lease
        self.by_slot.setdefault(lease.slot, []).append(lease.token)
        return Grant(
            slot=pull.slot,
            pull_seq=pull.seq,
            token=lease.token,
            start=lease.start,
            stop=lease.stop,
            budget_s=BUDGET_S,
            held_pages=pull.pages,
            alone=lease.alone,
            attempt=lease.attempt,
        )

    def _new_lease(self, slot: SlotKey, start: int, stop: int, now: float) -> LiveLease:
        self._counter += 1
        token = (self.epoch, self._counter)
        return LiveLease(token, slot, start, stop, IntervalSet([(start, stop)]), granted_at=now, seen_at=now)

    def _take_range(self, pull: WaitingPull, now: float) -> LiveLease | None:
        first = self.todo.first
        if first is None or first[0] >= self.leasing_stop:
            return None
        slot = pull.slot
        own = self.rates.get(slot)
        rate = own.per_s if own else 0.0
        base = CALLS_TARGET_S if self.spec.kind is JobKind.CALLS else MAP_TARGET_S
        size = lease_size(
            remaining=self._remaining(),
            slots=max(self.slots, len(self.by_slot), 1),
            last_size=self.last_size.get(slot, 0),
            rate_per_s=rate,
            target_s=target_s(base, self.slots),
            size_cap=self._size_cap,
        )
        attempt = self._attempts.get(first[0], 0)
        if attempt:
            size = 1
        taken = self.todo.pop_first(min(size, self.leasing_stop - first[0]))
        assert taken is not None
        start, stop = taken
        lease = self._new_lease(slot, start, stop, now)
        lease.attempt = attempt
        self.last_size[slot] = stop - start
        return lease

    def _remaining(self) -> int:
        """Tasks that nobody has leased, those still to come included as far as they are known of."""
        expected = self.total if self.total >= 0 else self.spec.total_hint
        return len(self.todo) + max(0, expected - self.cursor)

    def _take_suspect(self, pull: WaitingPull, now: float) -> LiveLease | None:
        """The first suspect that has not died on this node; one that has, if no other node pulls."""
        if not self.waiting_suspects or not pull.idle:
            return None
        others = {p.slot[0] for p in self.pulls.values() if p.idle}
        for at, index in enumerate(self.waiting_suspects):
            suspect = self.suspects[index]
            if pull.slot[0] in suspect.nodes and not others <= suspect.nodes:
                continue
            del self.waiting_suspects[at]
            lease = self._new_lease(pull.slot, index, index + 1, now)
            lease.alone = True
            lease.attempt = self._attempts.get(index, 0)
            return lease
        return None

    def _release_delayed(self, now: float) -> None:
        while self.delayed and self.delayed[0].not_before <= now:
            task = heapq.heappop(self.delayed)
            self._attempts[task.index] = task.attempt
            self.todo.add(task.index, task.index + 1)

    def _endgame(self, idle: list[WaitingPull], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for pull in idle:
            back = find_take_back(self.leases, self.by_slot, self.rates, now)
            if back is not None:
                effects.append(back)
                continue
            if not self.spec.speculate or self.spec.kind is JobKind.CALLS:
                break
            found = find_double(self.leases.values(), self.by_slot, self.rate, self._doubled, pull.slot, now)
            if isinstance(found, float):
                effects.append(Wake(found))
                break
            if found is None:
                break
            lease = self._new_lease(pull.slot, found, found + 1, now)
            lease.doubled = True
            self._doubled.add(found)
            self.doubled_count += 1
            effects.append(self._grant(lease, pull))
        return effects

    # ------------------------------------------------------------ what comes back

    def hand_in(
        self,
        *,
        slot: SlotKey,
        token: Token,
        bounds: Interval,
        results: Sequence[ResultPage],
        give_back: Sequence[Interval] = (),
        deaths: Sequence[Death] = (),
        retry_later: Sequence[RetryLater] = (),
        ended: bool = False,
        run_s: float = 0.0,
        reduced: bool = False,
        now: float,
    ) -> list[Effect]:
        """Results count whoever hands them in; the rest only from the lease that still stands."""
        effects: list[Effect] = []
        if self.is_final:
            return effects
        fresh_count = 0
        for page in results:
            start, stop = page.start, min(page.stop, self.cursor)
            if reduced and stop > start + 1 and self.done.intersects(start, stop):
                self._requeue_refused(token, start, stop)
                continue
            for a, b in self.done.add(start, stop):
                fresh_count += b - a
                narrowed = narrow(page, a, b) if not reduced else page
                self.failed_count += narrowed.failed_count
                self._settled(token, a, b, effects)
                effects.append(Record(narrowed, slot[0]))
        if fresh_count:
            self.nodes[slot[0]] = self.nodes.get(slot[0], 0) + fresh_count
            self._start_deaths = 0
        lease = self.leases.get(token)
        if lease is None:
            return effects + self._maybe_finish()
        lease.seen_at = now
        lease.done_count += sum(min(p.stop, self.cursor) - p.start for p in results)
        if run_s > 0:
            tasks = sum(p.stop - p.start for p in results)
            self.rates.setdefault(slot, Rate()).observe(tasks, run_s)
            self.rate.observe(tasks, run_s)
        for later in retry_later:
            self._retry_later(lease, later, now)
        for death in deaths:
            effects += self._died(lease, death, now)
        for start, stop in give_back:
            self._return(lease, start, stop)
        if give_back:
            lease.taking_back_at = None
        if ended:
            self._close(lease)
            if not deaths and self._size_cap:
                self._size_cap = self._size_cap * 2 if self._size_cap < 1 << 30 else 0
        return effects + self._maybe_finish()

    def _settled(self, token: Token, start: int, stop: int, effects: list[Effect]) -> None:
        """These tasks are done: they are nowhere else any more."""
        lease = self.leases.get(token)
        if lease is not None and not lease.doubled and not self._doubled and lease.pending.covers(start, stop):
            lease.pending.remove(start, stop)
            if self.suspects or self._attempts:
                self._forget_marks(start, stop)
            return
        self.todo.remove(start, stop)
        for other in list(self.leases.values()):
            if other.pending.remove(start, stop) and other.token != token and not other.pending:
                effects.append(Drop(other.node, (other.token,), "recorded elsewhere"))
                self._close(other)
        self.waiting_suspects = [i for i in self.waiting_suspects if not start <= i < stop]
        if any(start <= d.index < stop for d in self.delayed):
            self.delayed = [d for d in self.delayed if not start <= d.index < stop]
            heapq.heapify(self.delayed)
        self._forget_marks(start, stop)

    def _forget_marks(self, start: int, stop: int) -> None:
        _forget(self.suspects, start, stop)
        _forget(self._attempts, start, stop)
        if self._doubled:
            self._doubled = {i for i in self._doubled if not start <= i < stop}

    def _requeue_refused(self, token: Token, start: int, stop: int) -> None:
        """A reduced range that overlaps what is done counts for nothing: what of it is missing runs again."""
        lease = self.leases.get(token)
        if lease is not None:
            self._return(lease, start, stop)

    def _return(self, lease: LiveLease, start: int, stop: int) -> None:
        """What of [start, stop) is pending in the lease is to do again."""
        for a, b in lease.pending.remove(start, stop):
            if lease.doubled:
                self._doubled.difference_update(range(a, b))
                continue
            for c, d in self._not_elsewhere(lease, a, b):
                self.todo.add(c, d)

    def _not_elsewhere(self, lease: LiveLease, start: int, stop: int) -> list[Interval]:
        """The parts of [start, stop) that no doubled lease has: those go on there, as its own."""
        if not self._doubled:
            return [(start, stop)]
        left = IntervalSet([(start, stop)])
        for other in self.leases.values():
            if other.doubled and other is not lease:
                for a, b in other.pending.overlap(start, stop):
                    left.remove(a, b)
                    other.doubled = False
                    self._doubled.difference_update(range(a, b))
        return list(left)

    def _close(self, lease: LiveLease) -> None:
        """The lease is over; what is still pending of it is to do again."""
        for start, stop in lease.pending.intervals():
            self._return(lease, start, stop)
        self.leases.pop(lease.token, None)
        tokens = self.by_slot.get(lease.slot)
        if tokens and lease.token in tokens:
            tokens.remove(lease.token)
            if not tokens:
                del self.by_slot[lease.slot]

    def _retry_later(self, lease: LiveLease, later: RetryLater, now: float) -> None:
        if lease.pending.remove(later.index, later.index + 1):
            if lease.doubled:
                return
            self.retried += 1
            if len(self.delayed) >= DELAYED_LIMIT:
                self._attempts[later.index] = later.attempt
                self.todo.add(later.index, later.index + 1)
            else:
                heapq.heappush(self.delayed, Delayed(now + later.delay_s, later.index, later.attempt))

    def _died(self, lease: LiveLease, death: Death, now: float) -> list[Effect]:
        self.worker_deaths += 1
        index = death.index
        if index < 0:
            self._start_deaths += 1
            if self._start_deaths >= START_DEATHS_LIMIT:
                return self.fail(
                    f"workers died {self._start_deaths} times before they ran a single task: {death.message}. "
                    f"{death.detail}".strip(),
                    "workers",
                )
            return []
        if not lease.pending.remove(index, index + 1):
            return []
        if lease.doubled:
            self._doubled.discard(index)
            return []
        if not self._not_elsewhere(lease, index, index + 1):
            return []
        node = lease.node
        if death.kind == "timeout":
            attempt = self._attempts.get(index, lease.attempt) + 1
            if attempt > self.spec.retry.retries:
                return self._fault(index, death, node)
            self.retried += 1
            delay = self.spec.retry.delay_s(attempt)
            heapq.heappush(self.delayed, Delayed(now + delay, index, attempt))
            return [Wake(now + delay)]
        suspect = self.suspects.setdefault(index, Suspect(index))
        suspect.nodes.add(node)
        if death.kind == "memory":
            suspect.memory_deaths += 1
            if suspect.memory_deaths >= MEMORY_DEATHS_LIMIT or lease.alone:
                return self._fault(index, death, node)
        elif lease.alone:
            suspect.lone_deaths += 1
            if suspect.lone_deaths >= LONE_DEATHS_LIMIT:
                return self._fault(index, death, node)
        else:
            self._size_cap = max(1, (lease.stop - lease.start) // 2)
        self.retried += 1
        self.waiting_suspects.append(index)
        return []

    def _fault(self, index: int, death: Death, node: NodeId | None) -> list[Effect]:
        effects: list[Effect] = []
        if self.done.add(index, index + 1):
            self.failed_count += 1
            self._forget_marks(index, index + 1)
            fault = FaultPage(index, death.kind, death.message, death.detail)
            effects.append(RecordFault(fault, node))
        return effects

    # ------------------------------------------------------------ nodes come and go

    def beat(self, node: NodeId, held: Sequence[HeldLease], now: float) -> list[Effect]:
        """A heartbeat names the leases of this job that the node holds: known ones live on, unknown ones are
        adopted where their tasks are free, and told to stop where they are not."""
        effects: list[Effect] = []
        if self.is_final:
            if held:
                effects.append(Drop(node, (), f"the job is {self.state}"))
            return effects
        named = set()
        for lease in held:
            named.add(lease.token)
            known = self.leases.get(lease.token)
            if known is None:
                known = self._adopt(node, lease, now)
                if known is None:
                    effects.append(Drop(node, (lease.token,), "given to another"))
                    continue
            known.seen_at = now
            if lease.index >= 0:
                known.index = lease.index
                known.index_since = now - lease.elapsed_s
        for lost in [x for x in self.leases.values() if x.node == node and x.token not in named]:
            if now - lost.seen_at > UNNAMED_GRACE_S:
                self._close(lost)
        return effects

    def _adopt(self, node: NodeId, held: HeldLease, now: float) -> LiveLease | None:
        free: list[Interval] = []
        for start, stop in self.todo.overlap(held.start, min(held.stop, self.cursor)):
            free += self.todo.remove(start, stop)
        if not free:
            return None
        slot = (node, held.slot)
        lease = LiveLease(held.token, slot, held.start, held.stop, IntervalSet(free), granted_at=now, seen_at=now)
        self.leases[held.token] = lease
        self.by_slot.setdefault(slot, []).append(held.token)
        return lease

    def node_lost(self, node: NodeId, reason: str) -> list[Effect]:
        """The node is gone: its leases are to do again. A task under which many nodes were lost is failed."""
        effects: list[Effect] = []
        for slot in [s for s in self.pulls if s[0] == node]:
            del self.pulls[slot]
        for slot in [s for s in self.pull_seqs if s[0] == node]:
            del self.pull_seqs[slot]
            self.last_size.pop(slot, None)
            self.rates.pop(slot, None)
        for lease in [x for x in self.leases.values() if x.node == node]:
            index = lease.index
            if index in lease.pending and not lease.doubled:
                self.node_losses += 1
                self.retried += 1
                suspect = self.suspects.setdefault(index, Suspect(index))
                suspect.node_losses += 1
                if suspect.node_losses >= NODE_LOSSES_LIMIT:
                    lease.pending.remove(index, index + 1)
                    message = f"{suspect.node_losses} nodes were lost while they ran this task; the last: {reason}"
                    effects += self._fault(index, Death(index, "node_lost", message), node)
            self._close(lease)
        return effects + self._maybe_finish()

    # ------------------------------------------------------------ endings

    def _end(self, event: JobEvent, reason: str, kind: str = "") -> list[Effect]:
        if self.is_final:
            return []
        self.state = job_transition(self.state, event, self.story())
        self.reason = reason
        self.reason_kind = kind
        effects: list[Effect] = [
            Drop(node, (), reason) for node in sorted({lease.node for lease in self.leases.values()})
        ]
        self.leases.clear()
        self.by_slot.clear()
        self.pulls.clear()
        return [*effects, Ended(self.spec.job_id, self.state, reason)]

    def _maybe_finish(self) -> list[Effect]:
        if self.state is JobState.RUNNING and self.done.covers(0, self.total):
            reason = f"{self.failed_count} of {self.total} tasks failed" if self.failed_count else ""
            return self._end(JobEvent.FINISH, reason)
        return []


def _forget(marks: dict[int, Any], start: int, stop: int) -> None:
    """Delete the keys in [start, stop), in the time of the smaller of both."""
    if not marks:
        return
    keys = [i for i in marks if start <= i < stop] if len(marks) < stop - start else range(start, stop)
    for index in keys:
        marks.pop(index, None)
