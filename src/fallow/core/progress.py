"""Progress of one job, as its owner keeps it: which tasks are waiting, leased, done; who gets what next.

Theory of operation. Every task number below `cursor` is in exactly one of: `done`, `todo`, `delayed` (not before a
time), `suspects` waiting to run alone, or the `pending` of a live lease (a doubled task is in the pending of two).
Hand-ins, beats, deaths and silences move numbers between these; `dispatch` hands out leases to waiting pulls. Every
event may be repeated: what it claims about numbers that are no longer where it thinks is ignored. `check` asserts
the partition; the tests call it after every event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from fallow.core.effects import Drop, Effect, Ended, RecordFault
from fallow.core.endgame import TakeBacks
from fallow.core.failures import FailureBook
from fallow.core.intervals import IntervalSet
from fallow.core.lease import KnownSlot, LiveLease
from fallow.core.sizing import Rate
from fallow.model.ids import Interval, NodeId, SlotKey, Token, is_call_token
from fallow.model.job import JobCounts, JobSpec
from fallow.model.parts import Death, FaultPage
from fallow.model.states import JobEvent, JobState, job_transition

LIVE = (JobState.OPEN, JobState.RUNNING)


class Progress:
    """The pure state of a job. All times are monotonic seconds of the caller."""

    def __init__(self, spec: JobSpec, epoch: int, *, hold_until: float = 0.0, tokens_above: int = 0) -> None:
        self.spec = spec
        self.epoch = epoch
        self.state = JobState.OPEN
        self.is_final = False
        """Nothing of it will run any more (unless its failed tasks are tried again)."""
        self.reason = ""
        self.reason_kind = ""
        self.cursor = 0
        self.total = -1
        self.expects_call = False
        """A job of calls whose first call is on its way: its script made it before whatever it submitted next, and
        that comes with all its tasks. It counts as here, or those would have every slot before it comes."""
        self.done = IntervalSet()
        self.todo = IntervalSet()
        self.failures = FailureBook(spec.retry)
        self.leases: dict[Token, LiveLease] = {}
        self.busy_slots = 0
        """How many slots have leases."""
        self._known: dict[SlotKey, KnownSlot] = {}
        self._places: dict[NodeId, list[KnownSlot]] = {}
        """Slots of each node that anything is remembered of, by their numbers."""
        self._idle: dict[KnownSlot, None] = {}
        self._ahead: dict[KnownSlot, None] = {}
        """Slots that wait for a lease, the idle ones apart, each in the order in which they asked."""
        self.quiet: set[NodeId] = set()
        """Nodes that may be gone: nothing is granted to those of their slots that asked before."""
        self.rate = Rate()
        self.failed_count = 0
        self.retried = 0
        self.node_losses = 0
        self.worker_deaths = 0
        self.doubled_count = 0
        self.wasted_s = 0.0
        """Run time that was lost because owners wanted their machines back."""
        self.nodes: dict[NodeId, int] = {}
        self.slots = 1
        """How many slots the matcher has given the job (for sizing)."""
        self.owner_slots = 1
        """Slots of all jobs of the same owner: what its coordinator has to keep up with."""
        self.leasing_stop = 1 << 62
        """No lease beyond this index: what the client's window allows."""
        self.lease_room: int | None = None
        """How many more tasks may be leased, for the room that their results take; None: any number."""
        self._hold_until = hold_until
        self._counter = tokens_above
        """Two coordinators that were both sent a new job lease it under the same epoch until one commits it: what
        they count from tells their tokens apart."""
        self._size_cap = 0
        self._start_deaths = 0
        self._doubled: set[int] = set()
        self._doubtful: dict[int, Token] = {}
        """Tasks of leases whose nodes are silent, which may be run a second time."""
        self._doubt_at = 0.0
        """When to look for such leases."""
        self._take_backs = TakeBacks()
        self._double_at = 0.0

    # ------------------------------------------------------------ what is known

    @property
    def demand(self) -> int:
        """Slots that the job could use now."""
        if self.is_final:
            return 0
        # Every task is in one place: those in leases are what is left. A doubled one is in two.
        most = self.cursor - len(self.done) - len(self.failures.delayed) + len(self._doubled)
        if self.spec.max_leases:
            most = min(most, self.spec.max_leases)
        return 1 if self.expects_call and most < 1 else most

    @property
    def leased(self) -> int:
        """Tasks that are out in leases: every task is in one place."""
        failures = self.failures
        elsewhere = len(self.done) + self.todo.count + len(failures.delayed) + len(failures.waiting)
        return max(0, self.cursor - elsewhere)

    @property
    def waits(self) -> bool:
        """Something is to run, and no node that is heard of runs anything of the job."""
        return self.demand > 0 and all(lease.node in self.quiet for lease in self.leases.values())

    @property
    def pulls(self) -> int:
        """How many slots wait for a lease."""
        return len(self._idle) + len(self._ahead)

    def waiting(self, slot: SlotKey) -> KnownSlot | None:
        """The slot, if it waits for a lease of the job."""
        place = self._known.get(slot)
        return place if place is not None and place.waits else None

    def has_asked(self, slot: SlotKey) -> bool:
        """Whether the slot is known to have asked for a lease of the job."""
        place = self._known.get(slot)
        return place is not None and place.seq >= 0

    def is_busy(self, slot: SlotKey) -> bool:
        """Whether the slot has leases of the job."""
        place = self._known.get(slot)
        return place is not None and bool(place.tokens)

    def slot_rates(self) -> Iterator[tuple[SlotKey, float]]:
        """Slots that have run something, and their tasks per second."""
        return ((slot, place.rate.per_s) for slot, place in self._known.items() if place.rate is not None)

    @property
    def lacks_work(self) -> bool:
        """A slot is idle, and there is nothing to lease."""
        return bool(self._idle) and not self.todo

    def counts(self) -> JobCounts:
        return JobCounts(
            inputs=self.cursor,
            done=len(self.done),
            failed=self.failed_count,
            running=self.busy_slots,
            retried=self.retried,
            node_losses=self.node_losses,
            worker_deaths=self.worker_deaths,
            doubled=self.doubled_count,
            wasted_s=self.wasted_s,
        )

    def story(self) -> str:
        return (
            f"{self.spec.job_id} epoch {self.epoch} {self.state}: cursor {self.cursor} of {self.total}, "
            f"done {len(self.done)}, todo {len(self.todo)}, leases {len(self.leases)}"
        )

    def check(self) -> None:
        """Assert that every task is in exactly one place. For tests: costs as much as the job is large."""
        found: list[tuple[Interval, object]] = [(interval, "done") for interval in self.done]
        found += [(interval, "todo") for interval in self.todo]
        found += [((d.index, d.index + 1), "delayed") for d in self.failures.delayed]
        found += [((i, i + 1), "suspect") for i in self.failures.waiting]
        for lease in self.leases.values():
            if not lease.doubled:
                for interval in lease.pending.intervals():
                    found.append((interval, lease.token))
        found.sort(key=itemgetter(0))
        end, count, last = 0, 0, None
        for (start, stop), what in found:
            assert start >= end, f"{what} [{start}, {stop}) is in {last} too: {self.story()}"
            end, last = stop, what
            count += stop - start
        if not self.is_final:
            assert count == self.cursor, f"{self.cursor - count} tasks are nowhere: {self.story()}"
            held = [i for lease in self.leases.values() if not lease.doubled for i in lease.pending.intervals()]
            assert self.leased == sum(stop - start for start, stop in held), self.story()

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
        self.expects_call = False
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
            self._be(job_transition(self.state, JobEvent.END_INPUTS, self.story()))
            self.total = total
        return self.finish_if_done()

    def _be(self, state: JobState) -> None:
        self.state = state
        self.is_final = state not in LIVE

    def fail(self, reason: str, kind: str = "") -> list[Effect]:
        return self._end(JobEvent.FAIL, reason, kind)

    def cancel(self, reason: str, kind: str = "cancelled") -> list[Effect]:
        return self._end(JobEvent.CANCEL, reason, kind)

    def restore(self, *, done: Iterable[Interval], cursor: int, total: int, state: JobState, failed: int) -> None:
        """Take up what the store knows; everything not done is to do (leases are adopted from beats)."""
        self.cursor = cursor
        self.total = total
        self._be(state)
        self.failed_count = failed
        for start, stop in done:
            self.done.add(start, stop)
        for start, stop in self.done.gaps(0, cursor):
            self.todo.add(start, stop)

    def retry_failed(self, intervals: Sequence[Interval]) -> None:
        """A new generation: these tasks are to run again."""
        if self.state is JobState.SUCCEEDED:
            self._be(job_transition(self.state, JobEvent.RETRY_FAILED, self.story()))
            self.reason = ""
        for start, stop in intervals:
            for a, b in self.done.remove(start, stop):
                self.todo.add(a, b)
                self.failures.settled(a, b)
        self.failed_count = 0

    # ------------------------------------------------------------ leases end

    def _drop_pull(self, place: KnownSlot) -> None:
        place.is_late = False
        if place.waits:
            place.waits = False
            del (self._idle if place.idle else self._ahead)[place]

    def _clear_pulls(self) -> None:
        for waiting in (self._idle, self._ahead):
            for place in waiting:
                place.waits = False
            waiting.clear()
        for node in self.quiet:
            for place in self._places.get(node, ()):
                place.is_aside = False

    def _hold(self, lease: LiveLease) -> None:
        """There is a new lease."""
        self.leases[lease.token] = lease
        tokens = lease.place.tokens
        if not tokens:
            self.busy_slots += 1
            lease.works_since = lease.granted_at
        tokens.append(lease.token)
        self._take_backs.added(lease)

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
        if lease.pending:
            for start, stop in lease.pending.intervals():
                self._return(lease, start, stop)
        self.leases.pop(lease.token, None)
        tokens = lease.place.tokens
        if lease.token in tokens:
            tokens.remove(lease.token)
            if not tokens:
                self.busy_slots -= 1
        if lease.place.is_late and not any(is_call_token(token) for token in tokens):
            lease.place.is_late = False
            lease.place.waits = True
            self._idle[lease.place] = None

    # ------------------------------------------------------------ endings

    def _forget_marks(self, start: int, stop: int) -> None:
        self.failures.settled(start, stop)
        if self._doubled:
            self._doubled = {i for i in self._doubled if not start <= i < stop}

    def _fault(self, index: int, death: Death, node: NodeId | None) -> list[Effect]:
        effects: list[Effect] = []
        if self.done.add(index, index + 1):
            self.failed_count += 1
            self._forget_marks(index, index + 1)
            fault = FaultPage(index, death.kind, death.message, death.detail)
            effects.append(RecordFault(fault, node))
        return effects

    def _end(self, event: JobEvent, reason: str, kind: str = "") -> list[Effect]:
        if self.is_final:
            return []
        self._be(job_transition(self.state, event, self.story()))
        self.reason = reason
        self.reason_kind = kind
        effects: list[Effect] = [
            Drop(node, (), reason) for node in sorted({lease.node for lease in self.leases.values()})
        ]
        for lease in self.leases.values():
            lease.place.tokens.clear()
        self.leases.clear()
        self.busy_slots = 0
        self._clear_pulls()
        return [*effects, Ended(self.spec.job_id, self.state, reason)]

    def finish_if_done(self) -> list[Effect]:
        if self.state is JobState.RUNNING and self.done.count >= self.total and self.done.covers(0, self.total):
            reason = f"{self.failed_count} of {self.total} tasks failed" if self.failed_count else ""
            return self._end(JobEvent.FINISH, reason)
        return []
