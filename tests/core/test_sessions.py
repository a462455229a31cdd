"""Who has fallen silent: judged by the watcher's own steady clock, whatever wall clocks do."""

from __future__ import annotations

import random

from fallow.core.sessions import Renewal, SessionWatch, to_take
from fallow.model.ids import JobId

TTL_S = 1.7


def stamped(owner: str, stamp: float) -> Renewal:
    return Renewal(owner, stamp, TTL_S)


def test_a_session_is_over_when_its_stamp_stood_still_for_as_long_as_it_holds() -> None:
    watch = SessionWatch()
    assert watch.silent([stamped("a", 5.0)], 100.0) == [], "it is seen for the first time, however old it is"
    assert watch.silent([stamped("a", 5.0)], 101.6) == []
    assert watch.silent([stamped("a", 5.0)], 101.7) == [stamped("a", 5.0)]
    assert watch.silent([stamped("a", 5.001)], 101.8) == []
    assert watch.silent([stamped("a", 5.001)], 103.4) == []
    assert watch.silent([stamped("a", 5.001)], 103.5) == [stamped("a", 5.001)]


def test_what_is_handed_over_is_left_to_whom_it_is_for() -> None:
    dead, handed = JobId("job-dead"), JobId("job-handed")
    taken, released = to_take([(dead, "c1"), (handed, "")], set())
    assert taken == [dead]
    taken, released = to_take([(handed, "")], released)
    assert taken == [handed], "whoever it was for has not heard of it"
    assert to_take([], released) == ([], set())


def test_whoever_returns_is_seen_for_the_first_time_again() -> None:
    watch = SessionWatch()
    watch.silent([stamped("a", 5.0)], 100.0)
    assert watch.silent([], 101.0) == []
    assert watch.silent([stamped("a", 5.0)], 102.0) == []


def test_no_two_speak_for_one_job_and_none_is_left_alone_whatever_the_stores_clock_does() -> None:
    """Owners renew, stall, die; the store's clock jumps by hours. An owner speaks for TTL_S - 0.1 s from when a
    renewal began, and a session ends when a watcher has seen it stand still, on condition that it still does."""
    for seed in range(200):
        dice = random.Random(seed)
        names = ("a", "b", "c")
        rows: dict[str, Renewal] = {}
        speaks_until = dict.fromkeys(names, 0.0)
        stalled_until = dict.fromkeys(names, 0.0)
        dead: dict[str, float] = {}
        watches = {name: SessionWatch() for name in names}
        due = {name: dice.uniform(0.0, 0.3) for name in names}
        wall = 1_700_000_000.0
        now = 0.0
        while now < 30.0:
            faults = now < 20.0
            now += 0.05
            wall += 0.05 + (dice.choice((-3600.0, -60.0, -1.0, 1.0, 60.0, 3600.0)) if dice.random() < 0.01 else 0.0)
            for name in names:
                if name in dead or now < stalled_until[name] or now < due[name]:
                    continue
                if faults and dice.random() < 0.01:
                    stalled_until[name] = now + dice.uniform(0.5, 6.0)
                    continue
                if faults and dice.random() < 0.005 and len(dead) < 2:
                    dead[name] = now
                    continue
                due[name] = now + 0.3
                before = rows.get(name)
                if before is not None and now >= speaks_until[name]:
                    watches[name] = SessionWatch()  # it lapsed: a new session
                rows[name] = stamped(name, max(wall, before.stamp + 0.001) if before is not None else wall)
                speaks_until[name] = now + TTL_S - 0.1
                for silent in watches[name].silent([r for o, r in rows.items() if o != name], now):
                    assert rows[silent.owner] == silent
                    assert now >= speaks_until[silent.owner], (seed, "two would speak for its jobs")
                    del rows[silent.owner]
        assert set(rows) == set(names) - set(dead), (seed, "the dead live on, or the living do not")
