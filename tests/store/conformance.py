"""What every Store must do. A store's own test module subclasses StoreConformance and says how to make one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fallow.model.ids import ClientId, Digest, JobId, NodeId, PoolId
from fallow.model.job import Blob, EnvSpec, JobKind, JobSpec, RetryPolicy
from fallow.model.node import Device, NodeSpec
from fallow.model.states import JobState
from fallow.store.protocol import (
    AppendLogs,
    CreateJob,
    DeleteJob,
    DropCheckpoints,
    DropInputPages,
    DropResultPages,
    Op,
    OwnershipLost,
    PutCheckpoint,
    PutInputPage,
    PutNode,
    PutResultPage,
    ReplaceResults,
    SetJob,
    Store,
)

_numbers = itertools.count(1)
SPACE = 40
"""Tasks of the job that the model test plays with."""


def job_id() -> JobId:
    """A new one, in the shape that the product makes them."""
    number, letters = next(_numbers), ""
    for _ in range(16):
        number, digit = divmod(number, 26)
        letters += chr(97 + digit)
    return JobId(f"job-{letters[::-1]}")


def inline(text: str) -> Blob:
    return Blob(Digest(text.encode().hex().ljust(64, "0")[:64]), len(text), text.encode())


def stored(letter: str) -> Blob:
    return Blob(Digest(letter * 64), 1 << 20)


def spec(job: JobId, name: str = "square", **changes: object) -> JobSpec:
    fields: dict[str, object] = {
        "job_id": job, "name": name, "kind": JobKind.MAP, "client_id": ClientId("client-aaaaaaaaaaaaaaaa"),
        "function": inline("function"), "env": EnvSpec("3.11", ("numpy",)), "timeout_s": 1.5,
        "retry": RetryPolicy(2, 0.5), "detached": True, "created_unix_s": 3.0,
    }  # fmt: skip
    return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]


def node(name: str) -> NodeSpec:
    return NodeSpec(
        node_id=NodeId(f"node-{name}"), name=name, slots=2, cpu_count=2, memory_bytes=1 << 33, disk_free_bytes=1 << 34,
        platform="linux", pythons=("3.11",), version="0.1", devices=(Device("gpu", "H200", 1 << 37),),
    )  # fmt: skip


def put(job: JobId, seq: int, start: int, stop: int, epoch: int = 1, **more: object) -> PutResultPage:
    fields: dict[str, object] = {"page_start": start, "page": inline(f"result {start}"), "node": "n1"}
    return PutResultPage(job, epoch, seq, start, stop, **{**fields, **more})  # type: ignore[arg-type]


def give(job: JobId, start: int, stop: int, epoch: int = 1, page: Blob | None = None) -> PutInputPage:
    return PutInputPage(job, epoch, start, stop, page or inline(f"input {start}"))


def everything(store: Store, job: JobId) -> tuple[object, ...]:
    """All that can be read of a job."""
    inputs, results = store.input_pages(job), store.result_pages(job)
    return (
        store.get_job(job),
        inputs,
        results,
        store.done_intervals(job),
        store.read_input(job, [page.start for page in inputs]),
        store.read_results(job, [page.start for page in results]),
        store.read_logs(job, -1, 1000),
    )


class StoreConformance:
    """Subclasses define `open_at`."""

    def open_at(self, folder: Path) -> Store:
        """Open the store that lies in the folder, made when it is not there."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        opened = self.open_at(tmp_path)
        yield opened
        opened.close()

    @pytest.fixture
    def job(self, store: Store) -> JobId:
        job = job_id()
        store.commit([CreateJob(spec(job), "me", 5.0)])
        return job

    # ------------------------------------------------------------ jobs

    def test_pool_id_is_kept(self, store: Store, tmp_path: Path) -> None:
        assert store.pool_id(PoolId("pool-first")) == "pool-first"
        assert store.pool_id(PoolId("pool-second")) == "pool-first"
        again = self.open_at(tmp_path)
        assert again.pool_id(PoolId("pool-third")) == "pool-first"
        again.close()

    def test_a_job_comes_back_as_it_was(self, store: Store) -> None:
        job = job_id()
        made = spec(job)
        store.commit([CreateJob(made, "me", 5.0)])
        found = store.get_job(job)
        assert found is not None
        assert found.spec == made
        assert (found.state, found.owner, found.epoch, found.total) == (JobState.OPEN, "me", 1, -1)
        assert (found.created_unix_s, found.reason, found.nodes) == (5.0, "", {})
        assert store.get_job(job_id()) is None

    def test_a_job_that_exists_is_left_alone(self, store: Store, job: JobId) -> None:
        store.commit([SetJob(job, 1, reason="because")])
        store.commit([CreateJob(spec(job, "other"), "somebody", 9.0)])
        found = store.get_job(job)
        assert found is not None
        assert (found.spec.name, found.owner, found.reason, found.created_unix_s) == ("square", "me", "because", 5.0)

    def test_set_job_leaves_what_is_none(self, store: Store, job: JobId) -> None:
        store.commit([SetJob(job, 1, JobState.RUNNING, "all inputs", total=7, nodes={"a": 3})])
        store.commit([SetJob(job, 1, input_error="oh", consumed=2, retried=1, failed=3, wasted_s=2.5)])
        store.commit([SetJob(job, 1, state=JobState.FAILED, ended_unix_s=8.0)])
        found = store.get_job(job)
        assert found is not None
        assert (found.state, found.reason, found.total, found.nodes) == (JobState.FAILED, "all inputs", 7, {"a": 3})
        assert (found.input_error, found.consumed, found.ended_unix_s) == ("oh", 2, 8.0)
        assert (found.retried, found.failed, found.wasted_s) == (1, 3, 2.5)

    def test_find_by_id_then_newest_name_then_prefix(self, store: Store) -> None:
        first, second, third = JobId("job-aabbccddee"), JobId("job-aabbccddff"), JobId("job-zzzzzzzzzz")
        named = JobId("job-yyyyyyyyyy")
        for job, name in ((first, "square"), (second, "square"), (third, "cube"), (named, first)):
            store.commit([CreateJob(spec(job, name), "me", 1.0)])
        assert store.find_job(first) == first, "an id goes before a job that is named like it"
        assert store.find_job("square") == second, "the newest of a name"
        assert store.find_job("job-zz") == third
        assert store.find_job("job-z") is None, "too short"
        assert store.find_job("job-aabbccdd") is None, "two jobs begin like it"
        assert store.find_job("job-aabbccddf") == second
        for odd in ("", "%", "job-aa%", "job-aa_____", "jöb-aabbcc", "x" * 1000):
            assert store.find_job(odd) is None

    def test_list_jobs_newest_first(self, store: Store) -> None:
        jobs = [job_id() for _ in range(5)]
        for number, job in enumerate(jobs):
            store.commit([CreateJob(spec(job), "me", 100.0 - number)])  # the clock may jump back
        store.commit([SetJob(jobs[3], 1, state=JobState.CANCELLED), SetJob(jobs[4], 1, state=JobState.RUNNING)])
        assert [found.spec.job_id for found in store.list_jobs(3, False)] == jobs[:1:-1]
        assert [found.spec.job_id for found in store.list_jobs(3, True)] == [jobs[4], jobs[2], jobs[1]]
        assert store.list_jobs(0, False) == []

    # ------------------------------------------------------------ ownership

    def test_acquire_raises_the_epoch(self, store: Store, job: JobId) -> None:
        taken = store.acquire_job(job, "you")
        assert taken is not None
        assert (taken.owner, taken.epoch) == ("you", 2)
        assert store.get_job(job) == taken
        assert store.acquire_job(job_id(), "you") is None

    @pytest.mark.parametrize("what", ["set", "input", "result", "drop", "drop_results", "replace", "delete", "logs"])
    def test_a_former_owner_changes_nothing(self, store: Store, job: JobId, what: str) -> None:
        store.commit([give(job, 0, 5), put(job, 0, 0, 5), AppendLogs(job, 1, ((1, b"line"),), 10)])
        store.acquire_job(job, "you")
        other = job_id()
        store.commit([CreateJob(spec(other), "me", 1.0)])
        before = everything(store, job), everything(store, other)
        op: Op = {
            "set": SetJob(job, 1, reason="mine"),
            "input": give(job, 5, 9),
            "result": put(job, 1, 5, 9),
            "drop": DropInputPages(job, 1, 5),
            "drop_results": DropResultPages(job, 1, 5),
            "replace": ReplaceResults(job, 1, ((1, 2),)),
            "delete": DeleteJob(job, 1),
            "logs": AppendLogs(job, 1, ((2, b"more"),), 10),
        }[what]
        with pytest.raises(OwnershipLost) as caught:
            store.commit([give(other, 0, 5), op, give(other, 5, 9)])
        assert caught.value.job_ids == (job,)
        assert (everything(store, job), everything(store, other)) == before

    def test_a_job_that_is_gone_is_lost(self, store: Store) -> None:
        gone = job_id()
        with pytest.raises(OwnershipLost):
            store.commit([SetJob(gone, 1, reason="?")])

    def test_creating_what_another_owns_gives_no_right_to_it(self, store: Store, job: JobId) -> None:
        with pytest.raises(OwnershipLost):
            store.commit([CreateJob(spec(job), "you", 1.0), give(job, 0, 5)])
        assert store.input_pages(job) == []

    # ------------------------------------------------------------ pages

    def test_pages_come_back(self, store: Store, job: JobId) -> None:
        fault = ("node_lost", "the node went away", "detail")
        store.commit(
            [
                give(job, 10, 20, page=stored("b")),
                give(job, 0, 10),
                put(job, 0, 10, 15, page_start=8, page=stored("c"), failed_count=2, failed=(11, 12)),
                put(job, 1, 0, 3),
                put(job, 2, 3, 4, page=Blob(Digest(""), 0), failed_count=1, failed=(3,), fault=fault, node=""),
            ]
        )
        assert [(page.start, page.stop, page.inline) for page in store.input_pages(job)] == [
            (0, 10, True),
            (10, 20, False),
        ]
        assert (store.inputs_stop(job), store.inputs_stop(job_id())) == (20, 0)
        assert store.read_input(job, [10, 0, 5]) == {0: inline("input 0"), 10: stored("b")}
        first, second, third = store.result_pages(job)
        assert (first.seq, first.start, first.stop, first.page_start) == (0, 10, 15, 8)
        assert (first.digest, first.size, first.inline) == ("c" * 64, 1 << 20, False)
        assert (first.failed_count, first.failed, first.fault, first.node) == (2, (11, 12), None, "n1")
        assert (second.inline, second.failed, second.fault) == (True, (), None)
        assert (third.fault, third.failed) == (fault, (3,))
        assert store.read_results(job, [0, 10]) == {0: inline("result 0"), 10: stored("c")}
        assert store.read_results(job, []) == {}

    def test_many_pages_in_one_read(self, store: Store, job: JobId) -> None:
        store.commit([put(job, start, start, start + 1) for start in range(1200)])
        assert store.read_results(job, range(1200)).keys() == set(range(1200))

    def test_inputs_below_are_dropped_and_stay_so(self, store: Store, job: JobId) -> None:
        pages = [give(job, start, start + 10) for start in range(0, 50, 10)]
        store.commit(pages)
        store.commit([DropInputPages(job, 1, 35)])
        assert [page.start for page in store.input_pages(job)] == [30, 40]
        store.commit(pages)
        assert [page.start for page in store.input_pages(job)] == [30, 40], "a late repeat brings nothing back"
        assert store.inputs_stop(job) == 50

    def test_dropped_results_stay_done(self, store: Store, job: JobId) -> None:
        pages = [put(job, number, start, start + 10) for number, start in enumerate((20, 0, 10, 40))]
        store.commit(pages)
        store.commit([DropResultPages(job, 1, below=20)])
        assert store.done_intervals(job) == ((0, 20),)
        assert [page.start for page in store.result_pages(job)] == [20, 40]
        store.commit(pages)
        assert [page.start for page in store.result_pages(job)] == [20, 40], "a late repeat brings nothing back"
        store.commit([DropResultPages(job, 1, below_seq=4)])
        assert store.done_intervals(job) == ((0, 30), (40, 50))
        assert store.result_pages(job) == []

    def test_taking_failed_tasks_out_splits_a_page(self, store: Store, job: JobId) -> None:
        store.commit([put(job, 0, 0, 20, page_start=0, failed_count=3, failed=(0, 7, 15)), put(job, 1, 20, 30)])
        store.commit([ReplaceResults(job, 1, ((0, 1), (7, 8), (25, 30)))])
        assert [(page.seq, page.start, page.stop, page.page_start) for page in store.result_pages(job)] == [
            (0, 1, 7, 0),
            (0, 8, 20, 0),
            (1, 20, 25, 20),
        ]
        assert [(page.failed_count, page.failed) for page in store.result_pages(job)] == [(0, ()), (1, (15,)), (0, ())]
        assert store.read_results(job, [8])[8] == inline("result 0")
        store.commit([put(job, 2, 7, 8), put(job, 3, 0, 1)])
        assert [page.start for page in store.result_pages(job)] == [1, 8, 20, 7, 0]

    def test_failures_beyond_the_list_stay_counted(self, store: Store, job: JobId) -> None:
        store.commit([put(job, 0, 0, 100, failed_count=10, failed=(3, 4))])
        store.commit([ReplaceResults(job, 1, ((3, 4), (50, 51)))])
        assert sum(page.failed_count for page in store.result_pages(job)) == 8
        store.commit([ReplaceResults(job, 1, ((4, 5), (60, 67)))])
        assert sum(page.failed_count for page in store.result_pages(job)) == 0

    def test_what_was_dropped_can_be_taken_out_too(self, store: Store, job: JobId) -> None:
        store.commit([put(job, 0, 0, 20), DropResultPages(job, 1, below=20)])
        store.commit([ReplaceResults(job, 1, ((5, 6), (19, 20)))])
        assert store.done_intervals(job) == ((0, 5), (6, 19))

    def test_live_digests(self, store: Store) -> None:
        job, other = job_id(), job_id()
        made = spec(job, function=stored("a"), env=EnvSpec(modules=stored("d")))
        store.commit([CreateJob(made, "me", 1.0), CreateJob(spec(other), "me", 1.0)])
        store.commit([give(job, 0, 5, page=stored("b")), give(job, 5, 9), put(job, 0, 0, 5, page=stored("c"))])
        assert store.live_digests() == {letter * 64 for letter in "abcd"}
        assert store.live_among([letter * 64 for letter in "xcaby"]) == {letter * 64 for letter in "abc"}
        assert store.live_among([]) == set()
        store.commit([DropResultPages(job, 1, below=9), DropInputPages(job, 1, 9)])
        assert store.live_digests() == {"a" * 64, "d" * 64}
        assert store.live_among(["a" * 64, "b" * 64]) == {"a" * 64}
        store.commit([DeleteJob(job, 1)])
        assert store.live_digests() == set()

    def test_delete_forgets_everything(self, store: Store, job: JobId) -> None:
        store.commit([give(job, 0, 5), put(job, 0, 0, 5), AppendLogs(job, 1, ((1, b"line"),), 10)])
        store.commit([put(job, 1, 5, 9), DropResultPages(job, 1, 5)])
        store.commit([DeleteJob(job, 1)])
        assert everything(store, job) == (None, [], [], (), {}, {}, [])
        store.commit([CreateJob(spec(job), "me", 1.0)])
        assert everything(store, job)[1:] == ([], [], (), {}, {}, []), "nothing of the old one is left"

    def test_logs_keep_the_newest(self, store: Store, job: JobId) -> None:
        store.commit([AppendLogs(job, 1, tuple((seq, b"%d" % seq) for seq in range(10)), 6)])
        store.commit([AppendLogs(job, 1, ((20, b"20"),), 6)])
        assert store.read_logs(job, -1, 100) == [(seq, b"%d" % seq) for seq in (5, 6, 7, 8, 9, 20)]
        assert store.read_logs(job, 6, 2) == [(7, b"7"), (8, b"8")]
        assert store.read_logs(job_id(), -1, 100) == []

    def test_nodes(self, store: Store) -> None:
        store.commit([PutNode(node("b"), 1.0, "alive"), PutNode(node("a"), 2.0, "alive")])
        store.commit([PutNode(node("b"), 3.0, "lost")])
        assert store.list_nodes() == [(node("a"), 2.0, "alive"), (node("b"), 3.0, "lost")]

    # ------------------------------------------------------------ commits

    def test_every_commit_may_be_repeated(self, store: Store) -> None:
        job = job_id()
        commits: list[list[Op]] = [
            [CreateJob(spec(job), "me", 1.0), give(job, 0, 10), PutNode(node("a"), 1.0, "alive")],
            [give(job, 10, 20), SetJob(job, 1, state=JobState.RUNNING, total=20)],
            [put(job, 0, 0, 10, failed_count=1, failed=(4,)), put(job, 1, 12, 20)],
            [AppendLogs(job, 1, ((1, b"a"), (2, b"b")), 1)],
            [ReplaceResults(job, 1, ((4, 5),))],
            [put(job, 2, 4, 5), put(job, 3, 10, 12)],
            [DropInputPages(job, 1, 10), DropResultPages(job, 1, below=12, below_seq=1)],
            [SetJob(job, 1, state=JobState.SUCCEEDED, consumed=12)],
        ]
        for ops in commits:
            store.commit(ops)
            once = everything(store, job), store.list_nodes()
            store.commit(ops)
            assert (everything(store, job), store.list_nodes()) == once
        last: list[Op] = [SetJob(job, 1, reason="retention ended"), DeleteJob(job, 1)]
        store.commit(last)
        store.commit(last)
        assert store.get_job(job) is None
        store.commit([])

    def test_all_or_nothing(self, store: Store, job: JobId) -> None:
        before = everything(store, job)
        impossible = put(job, 1, 5, 9, page=Blob(Digest("a" * 64), None))  # type: ignore[arg-type]
        with pytest.raises(Exception, match=r"(?i)null"):
            store.commit([give(job, 0, 5), put(job, 0, 0, 5), impossible, SetJob(job, 1, reason="never")])
        assert everything(store, job) == before
        store.commit([put(job, 0, 0, 5)])
        assert len(store.result_pages(job)) == 1, "the store works on"

    def test_everything_is_there_after_reopening(self, store: Store, job: JobId, tmp_path: Path) -> None:
        store.commit([give(job, 0, 10), give(job, 10, 20, page=stored("b")), put(job, 0, 3, 9, page_start=0)])
        store.commit([put(job, 1, 0, 3), DropResultPages(job, 1, below=3), AppendLogs(job, 1, ((1, b"a"),), 5)])
        store.commit([PutNode(node("a"), 1.0, "alive")])
        before = everything(store, job), store.list_nodes(), store.list_jobs(10, False), store.live_digests()
        store.close()
        again = self.open_at(tmp_path)
        assert (everything(again, job), again.list_nodes(), again.list_jobs(10, False), again.live_digests()) == before
        again.close()

    def test_readers_in_other_threads_see_what_is_committed(self, store: Store, job: JobId) -> None:
        seen: list[int] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    seen.append(len(store.result_pages(job)))
            except BaseException as error:
                errors.append(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(20):
            store.commit([put(job, number * 5 + part, number * 5 + part, number * 5 + part + 1) for part in range(5)])
        done.set()
        for reader in readers:
            reader.join(30)
        assert not errors
        assert all(count % 5 == 0 for count in seen), "half of a commit was seen"

    # ------------------------------------------------------------ what tasks save of their state

    def test_a_state_lives_with_its_task(self, store: Store) -> None:
        job, other = job_id(), job_id()
        store.commit([CreateJob(spec(job), "me", 1.0), CreateJob(spec(other), "me", 1.0)])
        store.commit([PutCheckpoint(job, 1, 3, inline("a")), PutCheckpoint(other, 1, 3, stored("e"))])
        store.commit([PutCheckpoint(job, 1, 3, stored("f")), PutCheckpoint(job, 1, 4, inline("b"))])
        assert store.checkpoints(job) == {3: stored("f"), 4: inline("b")}
        assert {"e" * 64, "f" * 64} <= store.live_digests()
        assert store.live_among(["f" * 64, "0" * 64]) == {"f" * 64}
        with pytest.raises(OwnershipLost):
            store.commit([PutCheckpoint(job, 7, 3, inline("stale"))])
        store.commit([DropCheckpoints(job, 1, 0, 4)])
        assert store.checkpoints(job) == {4: inline("b")}
        assert "f" * 64 not in store.live_digests()
        store.commit([DeleteJob(other, 1)])
        assert "e" * 64 not in store.live_digests()
        assert store.checkpoints(other) == {}

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        actions=st.lists(
            st.tuples(st.sampled_from(["put", "drop"]), st.integers(0, 12), st.integers(1, 5)), max_size=20
        )
    )
    def test_states_follow_a_model(self, store: Store, actions: list[tuple[str, int, int]]) -> None:
        job = job_id()
        store.commit([CreateJob(spec(job), "me", 1.0)])
        model: dict[int, Blob] = {}
        for number, (action, first, length) in enumerate(actions):
            op: Op
            if action == "put":
                model[first] = inline(f"state {number}") if length % 2 else stored("abcdef"[number % 6])
                op = PutCheckpoint(job, 1, first, model[first])
            else:
                op = DropCheckpoints(job, 1, first, first + length)
                model = {task: state for task, state in model.items() if not first <= task < first + length}
            store.commit([op])
            store.commit([op])
            assert store.checkpoints(job) == model

    # ------------------------------------------------------------ against a model

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        actions=st.lists(
            st.tuples(
                st.sampled_from(["put", "drop", "drop_seq", "replace"]),
                st.integers(0, SPACE),
                st.integers(1, 12),
            ),
            max_size=25,
        )
    )
    def test_recorded_results_follow_a_model(self, store: Store, actions: list[tuple[str, int, int]]) -> None:
        """The model: for each task, the sequence number of its page, 'done' where that was dropped, or None."""
        job = job_id()
        store.commit([CreateJob(spec(job), "me", 1.0)])
        model: list[int | str | None] = [None] * (SPACE + 12)
        seq = 0
        for action, first, length in actions:
            op: Op
            if action == "put":
                free = next((at for at in range(first, first + length) if model[at] is None), None)
                if free is None:
                    continue
                stop = next((at for at in range(free, first + length) if model[at] is not None), first + length)
                op = put(job, seq, free, stop)
                model[free:stop] = [seq] * (stop - free)
                seq += 1
            elif action == "drop":
                op = DropResultPages(job, 1, below=first)
                for start, stop, _ in _pages(model, store, job):
                    if stop <= first:
                        model[start:stop] = ["done"] * (stop - start)
            elif action == "drop_seq":
                op = DropResultPages(job, 1, below_seq=length)
                model = ["done" if isinstance(at, int) and at < length else at for at in model]
            else:
                op = ReplaceResults(job, 1, ((first, first + length),))
                model[first : first + length] = [None] * length
            store.commit([op])
            store.commit([op])
            pages = {at: page.seq for page in store.result_pages(job) for at in range(page.start, page.stop)}
            done = [at for start, stop in store.done_intervals(job) for at in range(start, stop)]
            assert pages == {at: known for at, known in enumerate(model) if isinstance(known, int)}
            assert done == [at for at, known in enumerate(model) if known == "done"]
            intervals = store.done_intervals(job)
            assert all(left[1] < right[0] for left, right in itertools.pairwise(intervals)), "merged as far as can be"


def _pages(model: list[int | str | None], store: Store, job: JobId) -> list[tuple[int, int, int]]:
    """Where the recorded pages begin and end, which the model by task does not tell."""
    return [(page.start, page.stop, page.seq) for page in store.result_pages(job)]
