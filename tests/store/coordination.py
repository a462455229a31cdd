"""What every Store must do for several coordinators: sessions, leadership, handing jobs over, and committing side by
side. A store's own test module mixes this into its subclass of StoreConformance."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fallow.core.sessions import Renewal
from fallow.model.ids import JobId, PoolId
from fallow.model.states import JobState
from fallow.store.protocol import CreateJob, DropInputPages, Op, OwnershipLost, PutNode, SetJob, Store, WrongPool
from tests.store.conformance import give, job_id, node, put, spec

LONG_S = 3600.0


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not come true in 30 s"
        time.sleep(0.005)


def renewal_of(store: Store, owner: str) -> Renewal:
    return next(each for each in store.renewals() if each.owner == owner)


class CoordinationConformance:
    """Uses the fixtures of StoreConformance."""

    def open_at(self, folder: Path) -> Store:
        raise NotImplementedError

    def test_a_pool_with_another_secret_is_told_apart(self, store: Store) -> None:
        assert store.knows_secret("a", is_own=False), "none was known"
        assert store.knows_secret("a", is_own=False)
        assert not store.knows_secret("b", is_own=False)
        assert store.knows_secret("b", is_own=True), "its own pool has a new one"
        assert not store.knows_secret("a", is_own=False)

    def test_a_job_is_acquired_without_force_only_where_nobody_lives(self, store: Store, job: JobId) -> None:
        assert store.renew_session("me", LONG_S) == 1
        assert store.acquire_job(job, "you", force=False) is None
        found = store.get_job(job)
        assert found is not None
        assert (found.owner, found.epoch) == ("me", 1)
        mine = store.acquire_job(job, "me", force=False)
        assert mine is not None
        assert (mine.owner, mine.epoch) == ("me", 2), "one's own, after one was started again under its name"
        store.end_session("me")
        yours = store.acquire_job(job, "you", force=False)
        assert yours is not None
        assert (yours.owner, yours.epoch) == ("you", 3)
        assert store.acquire_job(job_id(), "you", force=False) is None
        store.renew_session("you", LONG_S)
        forced = store.acquire_job(job, "me")
        assert forced is not None
        assert forced.owner == "me", "force asks nobody"

    def test_a_released_job_is_free(self, store: Store, job: JobId) -> None:
        store.renew_session("me", LONG_S)
        with pytest.raises(OwnershipLost):
            store.release_job(job, 7)
        with pytest.raises(OwnershipLost):
            store.release_job(job, 1, owner="you")
        store.release_job(job, 1, owner="me")
        with pytest.raises(OwnershipLost):
            store.commit([give(job, 0, 5)])
        with pytest.raises(OwnershipLost):
            store.release_job(job, 1)
        assert store.jobs_of_dead_owners(10) == [(job, "")]
        taken = store.acquire_job(job, "you", force=False)
        assert taken is not None
        assert (taken.owner, taken.epoch) == ("you", 3)
        store.commit([give(job, 0, 5, epoch=3)])

    def test_a_job_is_handed_over(self, store: Store, job: JobId) -> None:
        for owner in ("me", "you", "they"):
            store.renew_session(owner, LONG_S)
        store.release_job(job, 1, to="you")
        assert store.jobs_of_dead_owners(10) == []
        assert store.acquire_job(job, "they", force=False) is None
        taken = store.acquire_job(job, "you", force=False)
        assert taken is not None
        assert (taken.owner, taken.epoch) == ("you", 3)

    def test_jobs_of_dead_owners(self, store: Store) -> None:
        jobs = [job_id() for _ in range(5)]
        for number, job in enumerate(jobs):
            store.commit([CreateJob(spec(job), ("live", "dead", "short")[number % 3], 1.0)])
        store.renew_session("live", LONG_S)
        store.renew_session("short", 0.001)
        store.commit([SetJob(jobs[4], 1, state=JobState.SUCCEEDED)])
        assert store.jobs_of_dead_owners(10) == [(jobs[1], "dead")], "no clock ends a session"
        assert store.end_silent(renewal_of(store, "short"))
        found = store.jobs_of_dead_owners(10)
        assert found == [(jobs[1], "dead"), (jobs[2], "short")], "what has ended can wait until it is asked for"
        assert store.jobs_of_dead_owners(1) == found[:1]

    def test_unread_jobs_of_dead_owners(self, store: Store) -> None:
        jobs = [job_id() for _ in range(5)]
        for number, job in enumerate(jobs):
            store.commit([CreateJob(spec(job), "live" if number == 0 else "dead", 1.0)])
        store.renew_session("live", LONG_S)
        for number in (0, 1, 2, 3):
            store.commit([SetJob(jobs[number], 1, state=JobState.SUCCEEDED, ended_unix_s=100.0 + number)])
        store.commit([DropInputPages(jobs[3], 1, 1 << 62)])
        assert store.unread_of_dead_owners(50.0, 10) == [jobs[2], jobs[1]]
        assert store.unread_of_dead_owners(101.5, 10) == [jobs[2]]
        assert store.unread_of_dead_owners(50.0, 1) == [jobs[2]]

    # ------------------------------------------------------------ coordinators

    def test_sessions_live_until_they_are_ended(self, store: Store) -> None:
        assert store.renewals() == []
        assert store.renew_session("b", LONG_S, "at b") == 1
        assert store.renew_session("a", 1.5, "at a") == 1
        before = renewal_of(store, "a")
        assert store.renew_session("a", 1.5, "moved") == 1
        assert [(each.owner, each.ttl_s, each.info) for each in store.renewals()] == [
            ("a", 1.5, "moved"), ("b", LONG_S, "at b"),
        ]  # fmt: skip
        assert renewal_of(store, "a").stamp > before.stamp
        store.end_session("b")
        store.end_session("unheard of")
        assert [each.owner for each in store.renewals()] == ["a"]
        assert store.renew_session("b", LONG_S) == 2, "whoever returns is told that it was away"
        assert store.renew_session("b", LONG_S, anew=True) == 3
        assert store.renew_session("b", LONG_S) == 3

    def test_only_what_has_not_been_renewed_since_is_ended(self, store: Store) -> None:
        store.renew_session("a", 1.5)
        seen = renewal_of(store, "a")
        store.renew_session("a", 1.5)
        assert not store.end_silent(seen)
        assert [each.owner for each in store.renewals()] == ["a"]
        assert store.end_silent(renewal_of(store, "a"))
        assert store.end_silent(seen), "it is over already"
        assert store.renewals() == []
        assert store.renew_session("a", 1.5) == 2

    def test_a_session_is_kept_with_one_word_and_hears_what_is_to_be_known(self, store: Store) -> None:
        jobs = [job_id() for _ in range(4)]
        for number, job in enumerate(jobs):
            store.commit([CreateJob(spec(job), ("a", "b", "dead", "dead")[number], 1.0)])
        dead = [(job, "dead") for job in jobs[2:]]
        store.renew_session("a", LONG_S, "at a")
        first = store.keep_session("a", LONG_S, "at a", 10)
        assert (first.epoch, first.term, first.others) == (1, 1, [])
        assert first.orphans == [(jobs[1], "b"), *dead], "nobody else is known yet"
        other = store.keep_session("b", 1.5, "at b", 1)
        assert (other.epoch, other.term) == (1, None), "another leads"
        assert other.orphans == dead[:1], "as many as were asked for; its own is none"
        assert other.others == [renewal_of(store, "a")]
        again = store.keep_session("a", LONG_S, "moved", 10)
        assert (again.epoch, again.term, again.orphans) == (1, 1, dead)
        assert again.others == [renewal_of(store, "b")]
        assert renewal_of(store, "a").info == "moved"
        assert renewal_of(store, "a").stamp > other.others[0].stamp
        store.end_session("a")
        now = store.keep_session("b", LONG_S, "at b", 10)
        assert (now.term, now.orphans, now.others) == (2, [(jobs[0], "a"), *dead], [])
        assert store.end_silent(renewal_of(store, "b"))
        assert store.keep_session("b", LONG_S, "at b", 10).epoch == 2, "whoever returns is told that it was away"
        assert store.keep_session("b", LONG_S, "at b", 10).term == 3
        assert store.keep_session("a", LONG_S, "at a", 10).term is None

    def test_one_leads_at_a_time(self, store: Store) -> None:
        for owner in ("a", "b", "c"):
            store.renew_session(owner, LONG_S)
        assert store.acquire_leadership("c", role="other") == 1
        assert store.acquire_leadership("a") == 1
        assert store.acquire_leadership("b") is None
        assert store.acquire_leadership("b", role="sweeper") == 1
        assert store.acquire_leadership("a") == 1
        store.end_session("a")
        assert store.acquire_leadership("b") == 2
        store.renew_session("a", LONG_S)
        assert store.acquire_leadership("a") is None
        assert store.end_silent(renewal_of(store, "b"))
        assert store.acquire_leadership("a") == 3
        assert store.acquire_leadership("b", role="sweeper") == 2, "its session was over"
        assert store.acquire_leadership("c", alone=True) == 4, "whoever led before is gone"
        assert store.acquire_leadership("c", alone=True) == 5

    def test_a_leader_that_was_late_begins_a_new_term(self, store: Store) -> None:
        store.renew_session("a", LONG_S)
        assert store.acquire_leadership("a") == 1
        store.renew_session("a", LONG_S)
        assert store.acquire_leadership("a") == 1
        store.renew_session("a", LONG_S, anew=True)
        assert store.acquire_leadership("a") == 2
        store.end_silent(renewal_of(store, "a"))
        store.renew_session("a", LONG_S)
        assert store.acquire_leadership("a") == 3

    def test_many_contend_and_one_wins(self, store: Store, tmp_path: Path) -> None:
        """Each with a store of its own, as coordinators have."""
        free = [job_id() for _ in range(6)]
        for each in free:
            store.commit([CreateJob(spec(each), "dead", 1.0)])
        names = [f"coordinator-{number}" for number in range(4)]
        won: dict[str, list[JobId]] = {name: [] for name in names}
        terms: list[int] = []
        errors: list[BaseException] = []

        def contend(name: str) -> None:
            try:
                mine = self.open_at(tmp_path)
                mine.renew_session(name, LONG_S)
                kept = mine.keep_session(name, LONG_S, "", 10)
                if kept.term is not None:
                    terms.append(kept.term)
                for each, _ in kept.orphans:
                    if mine.acquire_job(each, name, force=False) is not None:
                        won[name].append(each)
                mine.close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=contend, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        assert terms == [1]
        assert sorted(each for jobs in won.values() for each in jobs) == sorted(free)
        for name, jobs in won.items():
            assert all((found := store.get_job(each)) is not None and found.owner == name for each in jobs)

    def test_coordinators_commit_side_by_side(self, store: Store, tmp_path: Path) -> None:
        jobs = [job_id() for _ in range(4)]
        errors: list[BaseException] = []

        def work(mine: Sequence[JobId], owner: str) -> None:
            try:
                own = self.open_at(tmp_path)
                own.commit([CreateJob(spec(job), owner, 1.0) for job in mine])
                for number in range(15):
                    ops: list[Op] = [put(job, number, number, number + 1) for job in mine]
                    nodes = [PutNode(node(name), 1.0, "alive") for name in ("x", "y", "z")]
                    own.commit([*ops, *(nodes if owner == "a" else nodes[::-1])])
                own.close()
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=work, args=(mine, owner)) for mine, owner in ((jobs[:2], "a"), (jobs[2:], "b"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        assert [len(store.result_pages(job)) for job in jobs] == [15] * 4

    def test_a_job_that_two_create_at_once_is_the_firsts(self, store: Store, tmp_path: Path) -> None:
        jobs = [job_id() for _ in range(40)]
        errors: list[BaseException] = []
        start = threading.Barrier(2)

        def create(owner: str) -> None:
            try:
                own = self.open_at(tmp_path)
                for job in jobs:
                    start.wait(30)
                    own.commit([CreateJob(spec(job), owner, 1.0)])
                own.close()
            except BaseException as error:
                errors.append(error)
                start.abort()

        threads = [threading.Thread(target=create, args=(owner,)) for owner in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        for job in jobs:
            found = store.get_job(job)
            assert found is not None
            assert found.epoch == 1
            loser = "a" if found.owner == "b" else "b"
            with pytest.raises(OwnershipLost):
                store.commit([CreateJob(spec(job), loser, 1.0), give(job, 0, 5)])

    def test_another_pools_coordinator_is_refused(self, store: Store) -> None:
        store.pool_id(PoolId("pool-first"))
        assert store.pool_id(PoolId("pool-new"), expected=PoolId("pool-first")) == "pool-first"
        with pytest.raises(WrongPool, match=r"pool-first.*pool-second"):
            store.pool_id(PoolId("pool-new"), expected=PoolId("pool-second"))
