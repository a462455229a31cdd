"""Functions on a real pool: everything a caller can ask of one."""

from __future__ import annotations

import itertools
import operator
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fallow
from fallow.model import errors
from tests.pool import Pool, wait_for
from tests.sdk import tasks

pytestmark = pytest.mark.usefixtures("connected")


# ---------------------------------------------------------------- maps


def test_poison_among_very_short_tasks_is_one_error() -> None:
    bad = 150_003
    results = list(tasks.exit_at.map(range(300_000), kwargs={"at": bad}, return_exceptions=True))
    assert len(results) == 300_000
    assert isinstance(results[bad], errors.WorkerLost)
    assert results[bad].index == bad
    del results[bad]
    assert set(results) == {None}


def test_map_over_any_iterable() -> None:
    assert list(tasks.square.map([1, 2, 3])) == [1, 4, 9]
    assert list(tasks.square.map(range(3, 3000, 7))) == [x * x for x in range(3, 3000, 7)]
    assert list(tasks.square.map(x for x in range(1000))) == [x * x for x in range(1000)]
    assert list(tasks.square.map({5: "a", 6: "b"})) == [25, 36]
    assert list(tasks.square.map([])) == []
    assert list(tasks.square.map(range(0))) == []
    assert list(tasks.square.map(iter(()))) == []


def test_map_with_several_iterables_and_kwargs() -> None:
    assert list(tasks.add.map([1, 2, 3], [10, 20])) == [11, 22]
    assert list(tasks.add.map(["a", "b"], kwargs={"b": "!"})) == ["a!", "b!"]
    assert list(tasks.add.starmap([(1, 2), (3, 4)])) == [3, 7]


def test_a_hundred_thousand_tasks_in_order() -> None:
    total = 0
    for index, value in enumerate(tasks.square.map(range(100_000))):
        assert value == index * index
        total += 1
    assert total == 100_000


def test_results_as_they_come() -> None:
    assert sorted(tasks.square.map(range(2000), order_outputs=False)) == [x * x for x in range(2000)]


def test_large_inputs_and_results() -> None:
    blobs = [bytes([n]) * 1_000_000 for n in range(12)]
    assert list(tasks.echo.map(blobs)) == blobs


def test_a_function_of_the_script_with_what_it_closes_over() -> None:
    offset = 5
    app = fallow.App("here")

    @app.function
    def shifted(x: int) -> int:
        return x + offset

    assert list(shifted.map(range(3))) == [5, 6, 7]
    assert shifted.remote(1) == 6


def test_generators_flow_while_results_are_read() -> None:
    """An input may depend on an earlier result: neither waits for a full page."""
    seen: list[int] = []
    more = threading.Semaphore(3)

    def feedback() -> Iterator[int]:
        for n in range(12):
            more.acquire()
            yield n

    for value in tasks.square.map(feedback()):
        seen.append(value)
        more.release()
    assert seen == [n * n for n in range(12)]


def test_infinite_input_and_leaving_early(connected: Pool) -> None:
    results = tasks.square.map(itertools.count())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    job = fallow.job(results.job_id)
    results.close()
    assert _ended(job).state == "cancelled"


def test_breaking_out_of_the_loop_cancels() -> None:
    before = {info.job_id for info in fallow.jobs()}
    for value in tasks.square.map(itertools.count()):
        if value > 10:
            break
    (new,) = [info for info in fallow.jobs() if info.job_id not in before]
    assert _ended(fallow.job(new.job_id)).state == "cancelled"


def test_reduce_folds_in_order_on_the_nodes() -> None:
    n = 20_000
    assert tasks.square.map(range(n), reduce=operator.add) == sum(x * x for x in range(n))
    words = [str(n) for n in range(300)]
    assert tasks.echo.map(words, reduce=operator.add) == "".join(words)
    assert tasks.echo.map(words, reduce=operator.add, initial=">") == ">" + "".join(words)
    assert tasks.echo.map([], reduce=operator.add, initial=7) == 7
    with pytest.raises(TypeError, match="initial"):
        tasks.echo.map([], reduce=operator.add)
    with pytest.raises(tasks.Odd):
        tasks.only_even.map(range(10), reduce=operator.add)


def test_for_each() -> None:
    assert tasks.echo.for_each(range(100)) is None
    with pytest.raises(tasks.Odd):
        tasks.only_even.for_each([2, 3])
    tasks.only_even.for_each([2, 3], ignore_exceptions=True)


# ---------------------------------------------------------------- single calls


def test_remote() -> None:
    assert tasks.square.remote(12) == 144
    assert tasks.add.remote("a", b="b") == "ab"
    assert tasks.pid.remote() != os.getpid()
    big = bytes(3_000_000)
    assert tasks.add.remote(big, b"x") == big + b"x"


def test_remote_from_many_threads() -> None:
    wrong: list[object] = []

    def work(base: int) -> None:
        for n in range(base, base + 50):
            if tasks.square.remote(n) != n * n:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_class_methods_share_what_was_entered() -> None:
    model = tasks.Model(3)
    assert set(model.scale.map(range(50))) == {(3 * x, 1) for x in range(50)}
    assert model.scale.remote(5) == (15, 1)
    assert model.shift.remote(5) == 8
    assert model.shift.local(5) == 8
    with pytest.raises(AttributeError, match="scale, shift"):
        _ = model.load


# ---------------------------------------------------------------- failures


def test_the_original_exception_with_the_remote_traceback() -> None:
    with pytest.raises(tasks.Odd) as caught:
        list(tasks.only_even.map([0, 2, 5]))
    assert caught.value.number == 5
    assert "raise Odd(x)" in str(caught.value.__cause__)
    assert caught.value.__notes__ == ["In task 2 of only_even."]
    with pytest.raises(tasks.Odd):
        tasks.only_even.remote(1)


def test_iteration_can_go_on_after_a_failure() -> None:
    results, seen = tasks.only_even.map(range(6)), []
    while True:
        try:
            seen.append(next(results))
        except tasks.Odd as error:
            seen.append(-error.number)
        except StopIteration:
            break
    assert seen == [0, -1, 2, -3, 4, -5]


def test_return_exceptions() -> None:
    results = list(tasks.only_even.map(range(5), return_exceptions=True))
    assert [type(r).__name__ for r in results] == ["int", "Odd", "int", "Odd", "int"]


def test_an_exception_whose_init_takes_other_arguments() -> None:
    with pytest.raises(tasks.Stubborn, match="1 and 1") as caught:
        tasks.stubborn.remote(1)
    assert caught.value.sum == 2


def test_a_task_that_ends_its_process() -> None:
    results = list(tasks.exits.map(range(20), return_exceptions=True))
    lost = results.pop(7)
    assert isinstance(lost, errors.WorkerLost)
    assert lost.index == 7
    assert "3" in lost.exit_cause
    assert results == [x for x in range(20) if x != 7]


def test_a_task_that_hangs() -> None:
    results = list(tasks.hangs.map(range(5), return_exceptions=True))
    assert isinstance(results[2], errors.TaskTimeout)
    assert isinstance(results[2], TimeoutError)
    assert results[2].index == 2
    assert [results[n] for n in (0, 1, 3, 4)] == [0, 1, 3, 4]


def test_a_result_that_cannot_be_sent() -> None:
    results = list(tasks.makes_lambda.map(range(3), return_exceptions=True))
    assert isinstance(results[1], errors.UnserialisableResult)
    assert "'f'" in str(results[1])
    assert (results[0], results[2]) == (0, 2)


def test_inputs_that_cannot_be_sent() -> None:
    with open(os.devnull) as file:
        results = tasks.echo.map([1, 2, {"deep": [file]}, 4])
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(errors.UnserialisableInput, match=r"input 2 .*deep") as caught:
            next(results)
        assert caught.value.index == 2
        with pytest.raises(errors.UnserialisableInput, match="argument 1 is an open file"):
            tasks.echo.remote(file)


def test_functions_that_cannot_be_sent() -> None:
    app = fallow.App("x")
    with open(os.devnull) as file:
        reads = app.function(lambda x: file.read(x))
        with pytest.raises(errors.UnserialisableFunction, match="file"):
            reads.map([1])
        with pytest.raises(errors.UnserialisableFunction, match="file"):
            reads.remote(1)


def test_an_iterator_that_raises_midway() -> None:
    def breaks() -> Iterator[int]:
        yield from range(500)
        raise ConnectionError("the sensor is gone")

    seen: list[int] = []
    with pytest.raises(ConnectionError, match="the sensor is gone"):
        seen.extend(tasks.square.map(breaks()))
    assert seen == [x * x for x in range(500)]
    (newest,) = fallow.jobs(1)
    assert newest.total == 500
    assert newest.reason == "its inputs ended with ConnectionError: the sensor is gone"


def test_wrong_arguments_are_said_at_once() -> None:
    for bad in ("text", 3, None):
        with pytest.raises(errors.SettingError):
            tasks.square.map(bad)
    with pytest.raises(errors.SettingError, match="kwargs"):
        tasks.square.map([1], kwargs=[2])
    with pytest.raises(errors.SettingError, match="initial"):
        tasks.square.map([1], initial=2)
    with pytest.raises(TypeError, match="no option 'ordered'"):
        tasks.square.starmap([(1,)], ordered=False)


def test_retries_are_for_the_exceptions_named(tmp_path: Path) -> None:
    assert tasks.flaky.remote(str(tmp_path / "a")) == 3
    with pytest.raises(ValueError, match="not worth it"):
        tasks.not_retried.remote(str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "x"


# ---------------------------------------------------------------- handles


def test_spawn() -> None:
    handle = tasks.square.spawn(9)
    assert handle.get(timeout=60) == 81
    assert handle.get() == 81
    assert handle.status().state == "succeeded"
    assert fallow.job(handle.id).get() == 81
    bad = tasks.only_even.spawn(3)
    with pytest.raises(tasks.Odd):
        bad.get(timeout=60)


def test_spawn_get_times_out_and_cancel_ends_it() -> None:
    handle = tasks.sleeps.spawn(600)
    with pytest.raises(TimeoutError, match="goes on"):
        handle.get(timeout=0.05)
    assert not handle.done
    handle.cancel()
    assert handle.done
    with pytest.raises(errors.JobCancelled):
        handle.get(timeout=60)


def test_detached_jobs_are_read_later_in_order_and_by_index() -> None:
    handle = tasks.only_even.map(range(1000), detached=True)
    again = fallow.job(handle.id)
    assert list(again.results(10, 11)) == [10]
    assert again.result(998, timeout=60) == 998
    values = list(again.results(return_exceptions=True))
    assert [v for v in values if isinstance(v, int)] == list(range(0, 1000, 2))
    assert list(again.results(990, 993, return_exceptions=True))[2] == 992
    info = again.status()
    assert (info.state, info.counts.failed, info.total) == ("succeeded", 500, 1000)
    with pytest.raises(tasks.Odd):
        again.result(3)
    with pytest.raises(errors.JobNotFound):
        fallow.job("job-aaaaaaaaaaaaaaaa")


def test_retry_failed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    app = fallow.App("x")

    @app.function
    def needs_gate(x: int) -> int:
        if x == 3 and not os.path.exists(str(gate)):
            raise OSError("closed")
        return x

    handle = needs_gate.map(range(5), detached=True)
    with pytest.raises(OSError, match="closed"):
        handle.get()
    gate.touch()
    assert handle.retry_failed().get(timeout=60) == [0, 1, 2, 3, 4]


def test_retry_failed_waits_for_the_rest_of_the_job(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    app = fallow.App("x")

    @app.function
    def one_fails_and_one_waits(x: int) -> int:
        if not os.path.exists(str(gate)):
            if x == 0:
                raise OSError("closed")
            while not os.path.exists(str(gate)):
                time.sleep(0.02)
            time.sleep(0.5)
        return x

    handle = one_fails_and_one_waits.map(range(2), detached=True)
    with pytest.raises(OSError, match="closed"):
        handle.get()
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.2 s"):
        handle.retry_failed(timeout=0.2)
    gate.touch()
    assert handle.retry_failed().get(timeout=60) == [0, 1]
    assert sum(handle.status().nodes.values()) == 2


def test_nested_jobs_end_with_the_worker_that_asked_for_them(tmp_path: Path) -> None:
    app = fallow.App("x")

    @app.function
    def inner(x: int) -> int:
        time.sleep(300)
        return x

    @app.function
    def outer(folder: str) -> None:
        handle = inner.spawn(1)
        (Path(folder) / handle.id).touch()
        os._exit(3)

    with pytest.raises(errors.WorkerLost):
        outer.remote(str(tmp_path))
    started = [fallow.job(path.name) for path in tmp_path.iterdir()]
    assert started
    deadline = time.monotonic() + 30
    while any(not handle.done for handle in started):
        assert time.monotonic() < deadline, "nested jobs stayed open"
        time.sleep(0.05)
    assert {handle.status().reason for handle in started} == {"the worker whose task asked for it is gone"}


def test_a_detached_job_whose_inputs_break_is_not_left_half(connected: Pool) -> None:
    def breaks() -> Iterator[int]:
        yield from range(10)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        tasks.square.map(breaks(), detached=True)


# ---------------------------------------------------------------- objects, files, output


def test_objects_are_put_once_and_are_themselves_in_tasks() -> None:
    ref = fallow.put(list(range(100_000)))
    assert list(tasks.size_of.map([ref, ref])) == [100_000, 100_000]
    assert tasks.size_of.remote(ref) == 100_000
    assert tasks.add.remote([1], b=fallow.put([2])) == [1, 2]
    assert ref.get() == list(range(100_000))
    with open(os.devnull) as file, pytest.raises(errors.UnserialisableInput):
        fallow.put(file)


def test_arrays_are_mapped() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1_000_000, dtype="f8")
    app = fallow.App("x")

    @app.function
    def look(n, table):  # type: ignore[no-untyped-def]
        return float(table[n]), bool(table.flags.writeable), bool(table.flags.owndata)

    ref = fallow.put(array)
    assert list(look.map([5, 7], kwargs={"table": ref})) == [(5.0, False, False), (7.0, False, False)]
    (doubled,) = tasks.add.map([array], kwargs={"b": array})
    assert (doubled == 2 * array).all()


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    file = fallow.File(path)
    assert tasks.read_text.remote(file) == ("notes.txt", "hello")
    assert list(tasks.read_text.map([file, fallow.File(path)])) == [("notes.txt", "hello")] * 2
    path.write_text("changed since")
    assert tasks.read_text.remote(file) == ("notes.txt", "changed since")
    with pytest.raises(errors.SettingError, match="no such file"):
        fallow.File(tmp_path / "none")


def test_output_of_tasks_is_labelled(capfd: pytest.CaptureFixture[str]) -> None:
    said = ""

    def all_said() -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return all(f"[says {n}] I am task {n}\n" in said for n in range(3))

    results = tasks.says.map(range(3))
    assert next(results) == 0
    wait_for("the tasks' lines", all_said)
    assert list(results) == [1, 2]


# ---------------------------------------------------------------- nested


def test_nested_maps_and_calls() -> None:
    assert tasks.sum_of_squares.remote(10) == 285
    assert list(tasks.sum_of_squares.map(range(8))) == [sum(x * x for x in range(n)) for n in range(8)]


@pytest.mark.slow
def test_nesting_at_any_depth_never_deadlocks() -> None:
    assert tasks.fib.remote(9) == 34
    assert list(tasks.nested_executor.map([3, 4])) == [5, 14]
    assert list(tasks.nested_spawn.map([3, 4])) == [5, 14]


def _ended(job: fallow.JobHandle) -> object:
    wait_for("the job to end", lambda: job.done)
    return job.status()
