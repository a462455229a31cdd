"""Events of a job: pulls, hand-ins, beats and losses move its tasks; dispatch hands out what is next.

See core.progress for the theory of operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice

from msgspec.structs import replace

from fallow.core.effects import Drop, Effect, Grant, Record, Wake
from fallow.core.endgame import LOOK_SHARE, double_after_s, find_double, keeps_the_rest
from fallow.core.held_progress import HeldProgress, granted
from fallow.core.lease import KnownSlot, LiveLease
from fallow.core.remainder import Remainder
from fallow.core.results import narrow
from fallow.core.room import lease_share
from fallow.core.sizing import CALLS_TARGET_S, MAP_TARGET_S, Rate, lease_size, target_s
from fallow.model.ids import CALL_TOKENS, Interval, SlotKey, Token, call_token, is_call_token
from fallow.model.job import JobKind
from fallow.model.parts import Death, ResultPage, RetryLater

START_DEATHS_LIMIT = 6
"""Deaths outside any task, without a single result between them, after which the job is failed."""
SUSPECTS_LIMIT = 256
"""One death leaves at most so many suspects, whatever an agent says."""
PULLS_LIMIT = 100_000
DOUBTFUL_LIMIT = 1000
"""Tasks of one lease that may be run twice because its node is silent."""
NO_PAGES: frozenset[int] = frozenset()
IDLE_LIMIT = 256
"""Idle slots for which work is sought near the end of a job in one dispatch."""


class JobProgress(HeldProgress):
    """The pure state of a job with its events. All times are monotonic seconds of the caller."""

    # ------------------------------------------------------------ pulls and leases

    def pull(self, slot: SlotKey, seq: int, idle: bool, pages: Iterable[int]) -> None:
        """A slot wants a lease; its newest pull counts."""
        known = self._known.get(slot)
        if known is not None and (seq < known.seq or (seq == known.seq and not known.waits)):
            return
        if (known is None or not known.waits) and self.pulls >= PULLS_LIMIT:
            return
        place = known or self._know(slot)
        place.seq = seq
        if place.waits and place.idle != idle:
            self._drop_pull(place)
        place.pull_seq = seq
        place.idle = idle
        place.pages = frozenset(pages) if pages else NO_PAGES
        place.is_late = idle and bool(place.tokens) and any(is_call_token(token) for token in place.tokens)
        if place.is_late:
            self._drop_pull(place)
            place.is_late = True
            return
        place.waits = True
        place.is_aside = False
        (self._idle if idle else self._ahead)[place] = None

    def sent_call(self, slot: SlotKey, index: int, now: float) -> bool:
        """The client has sent this call to an idle slot itself. False: the call does not wait for one (any more)."""
        if self.is_final or index not in self.todo:
            return False
        self.todo.remove(index, index + 1)
        token = call_token(self.epoch, index)
        place = self._know(slot)
        lease = LiveLease(token, place, index, index + 1, Remainder(index, index + 1), now, now)
        lease.pull_seq, lease.sent_at = CALL_TOKENS, now
        self._drop_pull(place)
        place.is_aside = False
        self._hold(lease)
        return True

    def unpull(self, slot: SlotKey, seq: int) -> None:
        place = self._know(slot)
        if seq >= place.seq:
            place.seq = seq
            self._drop_pull(place)
            place.is_aside = False

    def dispatch(self, now: float) -> list[Effect]:
        """Hand out leases to waiting pulls, idle slots first; near the end take back and double."""
        effects: list[Effect] = []
        if self.is_final:
            self._clear_pulls()
            return effects
        if now < self._hold_until:
            return [Wake(self._hold_until)]
        if self.failures.delayed:
            for index in self.failures.due(now):
                self.todo.add(index, index + 1)
        if not self._idle and not self._ahead:
            return effects
        if self._doubtful:
            effects += self._double_doubtful(now)
        if self.todo.count or self.failures.waiting:
            for place in self._in_turn():
                if self.spec.max_leases and len(self.leases) >= self.spec.max_leases:
                    break
                lease = self._take_suspect(place, now) or self._take_range(place, now)
                if lease is None:
                    if not self.failures.waiting:
                        break
                    continue
                effects.append(self._grant(lease))
        if not self.todo.count and not self.failures.waiting and (self._idle or self._ahead):
            if now < self._double_at and self._take_backs.is_quiet(now):
                effects.append(Wake(self._double_at))
            else:
                effects += self._endgame(list(islice(self._idle, IDLE_LIMIT)), now)
        if self.failures.delayed and self.pulls:
            effects.append(Wake(self.failures.delayed[0].not_before))
        return effects

    @property
    def gives_ahead(self) -> bool:
        """Whether a slot that runs something may get its next lease now. If not, its pull is noted."""
        return not keeps_the_rest(self._remaining() if self.total >= 0 else None, self.slots, self.rate)

    def _in_turn(self) -> list[KnownSlot]:
        """Waiting slots that could be answered now, idle ones first."""
        count = self.pulls if self.failures.waiting else self.todo.count
        if not self.gives_ahead:
            return list(islice(self._idle, count))
        return list(islice(chain(self._idle, self._ahead), count))

    def _grant(self, lease: LiveLease) -> Grant:
        place = lease.place
        self._drop_pull(place)
        self._hold(lease)
        lease.pull_seq, lease.sent_at = place.pull_seq, lease.granted_at
        return granted(lease, place.pages)

    def _new_lease(self, place: KnownSlot, start: int, stop: int, now: float) -> LiveLease:
        self._counter += 1
        return LiveLease((self.epoch, self._counter), place, start, stop, Remainder(start, stop), now, now)

    def _take_range(self, place: KnownSlot, now: float) -> LiveLease | None:
        first = self.todo.first
        room = self.lease_room
        if first is None or first[0] >= self.leasing_stop or room == 0:
            return None
        own = place.rate
        rate = own.per_s if own else 0.0
        base = CALLS_TARGET_S if self.spec.kind is JobKind.CALLS else MAP_TARGET_S
        aimed_s = target_s(base, max(self.slots, self.owner_slots), self._counter)
        size = lease_size(
            remaining=self._remaining(),
            slots=max(self.slots, self.busy_slots, 1),
            last_size=place.last_size,
            rate_per_s=rate,
            target_s=aimed_s,
            size_cap=self._size_cap,
        )
        attempt = self.failures.attempts.get(first[0], 0)
        if attempt:
            size = 1
        if room is not None:
            size = min(size, room, lease_share(room, max(self.slots, self.busy_slots)))
            self.lease_room = room - size
        taken = self.todo.pop_first(min(size, self.leasing_stop - first[0]))
        assert taken is not None
        start, stop = taken
        lease = self._new_lease(place, start, stop, now)
        lease.attempt = attempt
        lease.aimed_s = aimed_s
        place.last_size = stop - start
        return lease

    def _remaining(self) -> int:
        """Tasks that nobody has leased, those still to come included as far as they are known of."""
        expected = self.total if self.total >= 0 else self.spec.total_hint
        waiting = self.todo.count
        return waiting + expected - self.cursor if expected > self.cursor else waiting

    def _take_suspect(self, place: KnownSlot, now: float) -> LiveLease | None:
        """A task that is to run alone, for an idle slot."""
        if not self.failures.waiting or not place.idle:
            return None
        index = self.failures.take_waiting(
            place.node,
            {other.node for other in self._idle},
            lambda: {lease.node for lease in self.leases.values()},
        )
        if index is None:
            return None
        lease = self._new_lease(place, index, index + 1, now)
        lease.alone = True
        lease.attempt = self.failures.attempts.get(index, 0)
        return lease

    def _endgame(self, idle: list[KnownSlot], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for place in idle:
            back = self._take_backs.next(self.leases, now)
            if back is not None:
                effects.append(back)
                continue
            if not self.spec.speculate or self.spec.kind is JobKind.CALLS:
                break
            if now < self._double_at:
                effects.append(Wake(self._double_at))
                break
            found = find_double(self.leases.values(), self.rate, self._doubled, place, self.spec.timeout_s, now)
            if not isinstance(found, int):
                after_s = double_after_s(self.rate)
                self._double_at = now + LOOK_SHARE * after_s
                if found is not None:
                    self._double_at = max(self._double_at, min(found, now + after_s))
                    effects.append(Wake(self._double_at))
                break
            effects.append(self._grant(self._double(place, found, now)))
        return effects

    def doubt(self, now: float, after_s: float) -> bool:
        """Find leases that no heartbeat has named for `after_s`: their nodes may be gone, or never got them. Whoever
        asks next may run their tasks a second time (`dispatch`). Returns whether there are any."""
        if now < self._doubt_at or not self.spec.speculate:
            return bool(self._doubtful)
        self._doubtful = {}
        oldest = now
        for lease in self.leases.values():
            if lease.doubled:
                continue
            if now - lease.seen_at < after_s:
                oldest = min(oldest, lease.seen_at)
                continue
            for start, stop in lease.pending.intervals():
                fresh = (index for index in range(start, stop) if index not in self._doubled)
                self._doubtful.update((index, lease.token) for index in islice(fresh, DOUBTFUL_LIMIT))
        self._doubt_at = now if self._doubtful else oldest + after_s
        return bool(self._doubtful)

    @property
    def doubt_at(self) -> float:
        """Before then `doubt` finds nothing new."""
        return self._doubt_at if self.spec.speculate else float("inf")

    def _double_doubtful(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        idle = list(islice(self._idle, len(self._doubtful)))
        for index, token in list(self._doubtful.items()):
            lease = self.leases.get(token)
            if lease is None or index not in lease.pending or index in self._doubled:
                del self._doubtful[index]
                continue
            place = next((place for place in idle if place.node != lease.node), None)
            if place is None:
                continue
            idle.remove(place)
            del self._doubtful[index]
            effects.append(self._grant(self._double(place, index, now)))
        return effects

    def _double(self, place: KnownSlot, index: int, now: float) -> LiveLease:
        """A second run of a task that is in progress elsewhere."""
        lease = self._new_lease(place, index, index + 1, now)
        lease.doubled = True
        self._doubled.add(index)
        self.doubled_count += 1
        return lease

    def cancel_calls(self, calls: Iterable[Interval]) -> list[Effect]:
        """Nobody waits for these calls: what has not begun never runs; a lease that has no others is dropped."""
        effects: list[Effect] = []
        for start, end in calls:
            stop = min(end, self.cursor)
            if self.is_final or start >= stop:
                continue
            self.todo.remove(start, stop)
            self.done.add(start, stop)
            for lease in list(self.leases.values()):
                if lease.pending.remove(start, stop) and not lease.pending:
                    effects.append(Drop(lease.node, (lease.token,), "nobody waits for it"))
                    self._close(lease)
            self._forget_marks(start, stop)
        return effects

    # ------------------------------------------------------------ what comes back

    def hand_in(
        self,
        *,
        slot: SlotKey,
        token: Token,
        results: Sequence[ResultPage],
        give_back: Sequence[Interval] = (),
        deaths: Sequence[Death] = (),
        retry_later: Sequence[RetryLater] = (),
        ended: bool = False,
        run_s: float = 0.0,
        reduced: bool = False,
        wasted_s: float = 0.0,
        now: float,
    ) -> list[Effect]:
        """Results count whoever hands them in; the rest only from the lease that still stands."""
        effects: list[Effect] = []
        if self.is_final:
            return effects
        fresh_count = ran_count = known_count = 0
        lease = self.leases.get(token)
        for page in results:
            start, stop = page.start, min(page.stop, self.cursor)
            ran_count += page.stop - start
            known_count += stop - start
            if reduced and stop > start + 1 and self.done.intersects(start, stop):
                # A reduced range that overlaps what is done counts for nothing: what of it is missing runs again.
                if lease is not None:
                    self._return(lease, start, stop)
                continue
            for a, b in self.done.add(start, stop):
                fresh_count += b - a
                narrowed = page if reduced or (a == start and b == page.stop) else narrow(page, a, b)
                self.failed_count += narrowed.failed_count
                self._settled(lease, a, b, effects)
                effects.append(Record(narrowed, slot[0]))
        if fresh_count:
            self.nodes[slot[0]] = self.nodes.get(slot[0], 0) + fresh_count
            self._start_deaths = 0
        if lease is None:
            return effects + self.finish_if_done()
        self.wasted_s += wasted_s  # a hand-in that is repeated ends no lease a second time
        lease.seen_at = now
        if lease.works_since is not None and known_count:
            lease.works_since = now
        lease.done_count += known_count
        if run_s > 0:
            rate = lease.place.rate
            if rate is None:
                rate = lease.place.rate = Rate()
            rate.observe(ran_count, run_s)
            self.rate.observe(ran_count, run_s)
        for later in retry_later:
            self._retry_later(lease, later, now)
        for death in deaths:
            effects += self._died(lease, death, now)
        for start, stop in give_back:
            self._return(lease, start, stop)
        if give_back:
            lease.taking_back_at = None
            self._take_backs.added(lease)
        if ended:
            self._close(lease)
            if lease.place.tokens:
                following = self.leases[lease.place.tokens[0]]
                if following.works_since is None:
                    following.works_since = now
            if not deaths and self._size_cap:
                self._size_cap = self._size_cap * 2 if self._size_cap < 1 << 30 else 0
        return effects + self.finish_if_done()

    def _settled(self, lease: LiveLease | None, start: int, stop: int, effects: list[Effect]) -> None:
        """These tasks are done, under this lease: they are nowhere else any more."""
        is_alone = not self._doubled or not any(start <= index < stop for index in self._doubled)
        if lease is not None and is_alone and not lease.doubled and lease.pending.take(start, stop):
            if self.failures:
                self.failures.settled(start, stop)
            return
        waited = sum(b - a for a, b in self.todo.remove(start, stop))
        if waited == stop - start and is_alone:
            self._forget_marks(start, stop)
            return
        for other in list(self.leases.values()):
            if other.pending.remove(start, stop) and other is not lease and not other.pending:
                effects.append(Drop(other.node, (other.token,), "recorded elsewhere"))
                self._close(other)
        self._forget_marks(start, stop)

    def _retry_later(self, lease: LiveLease, later: RetryLater, now: float) -> None:
        if lease.pending.remove(later.index, later.index + 1):
            if lease.doubled:
                self._doubled.discard(later.index)
                return
            if not self._not_elsewhere(lease, later.index, later.index + 1):
                return  # its second run goes on, as the only one
            self.retried += 1
            if self.failures.is_crowded:
                self.failures.attempts[later.index] = later.attempt
                self.todo.add(later.index, later.index + 1)
            else:
                self.failures.delay(later.index, later.attempt, now + later.delay_s)

    def _died(self, lease: LiveLease, death: Death, now: float) -> list[Effect]:
        self.worker_deaths += death.kind != "no_room"
        if death.count == 1:
            return self._died_under(lease, death, now)
        effects: list[Effect] = []
        for index in range(death.index, death.index + min(death.count, SUSPECTS_LIMIT)):
            effects += self._died_under(lease, replace(death, index=index, count=1), now)
        return effects

    def _died_under(self, lease: LiveLease, death: Death, now: float) -> list[Effect]:
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
        effects: list[Effect] = []
        if death.kind == "timeout":
            # Another copy would only run into the same limit later.
            self._drop_copies(index, effects)
        elif lease.doubled:
            self._doubled.discard(index)
            return []
        runs_on = not self._not_elsewhere(lease, index, index + 1)
        verdict = self.failures.died(
            death, alone=lease.alone or runs_on, attempt=lease.attempt, node=lease.node, now=now, runs_on=runs_on
        )
        if verdict == "fault":
            self._drop_copies(index, effects)
            return effects + self._fault(index, death, lease.node)
        self.retried += 1
        if verdict == "suspect" and not lease.alone and death.kind != "no_room":
            self._size_cap = max(1, (lease.stop - lease.start) // 2)
        return effects

    def _drop_copies(self, index: int, effects: list[Effect]) -> None:
        """No lease is to run this task any more."""
        self._doubled.discard(index)
        for other in list(self.leases.values()):
            if other.pending.remove(index, index + 1) and not other.pending:
                effects.append(Drop(other.node, (other.token,), "it is not to run any more"))
                self._close(other)
