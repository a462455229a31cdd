"""fallow.Executor against the semantics of the standard library's executors."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import pytest

import fallow
from fallow.model import errors
from tests.pool import wait_for
from tests.sdk import tasks

pytestmark = pytest.mark.usefixtures("connected")


def raises_for(x: int, bad: int = 3) -> int:
    if x == bad:
        raise ValueError(f"bad {x}")
    return x


class Thing:
    pass


def make_object(_: int) -> Thing:
    return Thing()


def touch(folder: str, name: object) -> object:
    Path(folder, str(name)).touch()
    return name


def wait_file(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


@pytest.fixture
def executor() -> Iterator[fallow.Executor]:
    with fallow.Executor() as made:
        yield made


def test_submit(executor: fallow.Executor) -> None:
    future = executor.submit(pow, 2, 10)
    assert isinstance(future, Future)
    assert future.result(60) == 1024
    assert future.done()
    assert not future.cancel()
    assert executor.submit(sorted, [3, 1], reverse=True).result(60) == [3, 1]
    assert executor.submit(dict, fn=1, self=2).result(60) == {"fn": 1, "self": 2}
    assert executor.submit(functools.partial(pow, 3), 2).result(60) == 9
    assert executor.submit("a-b".split, "-").result(60) == ["a", "b"]
    captured = 5
    assert executor.submit(lambda x: x + captured, 1).result(60) == 6
    with pytest.raises(errors.SettingError, match="cannot be called"):
        executor.submit(3)  # type: ignore[arg-type]


def test_many_submits_and_the_helpers_of_the_standard_library(executor: fallow.Executor) -> None:
    futures = [executor.submit(pow, n, 2) for n in range(3000)]
    done, pending = wait(futures, timeout=100)
    assert not pending
    assert len(done) == 3000
    assert [future.result() for future in futures] == [n * n for n in range(3000)]
    some = {executor.submit(pow, n, 3): n for n in range(50)}
    assert sorted((some[future], future.result()) for future in as_completed(some, timeout=100)) == [
        (n, n**3) for n in range(50)
    ]


def test_exceptions_are_the_futures(executor: fallow.Executor) -> None:
    future = executor.submit(raises_for, 3)
    error = future.exception(60)
    assert isinstance(error, ValueError)
    assert "raise ValueError" in str(error.__cause__)
    assert str(error.__cause__).count("  File ") == 1, error.__cause__  # nothing of ours stands above it
    assert "  File " not in str(executor.submit(pow, "a", 2).exception(60).__cause__)  # type: ignore[union-attr]
    lost = executor.submit(os._exit, 9)
    assert isinstance(lost.exception(90), errors.WorkerLost)
    with open(os.devnull) as file:
        unsendable, good = executor.submit(id, file), executor.submit(pow, 2, 2)
    assert isinstance(unsendable.exception(60), errors.UnserialisableInput)
    assert good.result(60) == 4


def test_running_when_sent_and_cancellable_before(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    with fallow.Executor(max_workers=1) as executor:
        futures = [executor.submit(wait_file, gate) for _ in range(40)]
        wait_for("the first call to be sent", futures[0].running)
        assert not futures[0].cancel()
        assert futures[-1].cancel()
        with pytest.raises(CancelledError):
            futures[-1].result()
        Path(gate).touch()
        assert futures[0].result(60) == gate
        assert sum(future.cancelled() for future in futures) == 1
        assert all(future.result(60) == gate for future in futures[:-1])


def test_shutdown(tmp_path: Path) -> None:
    executor = fallow.Executor()
    futures = [executor.submit(touch, str(tmp_path), n) for n in range(200)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert len(list(tmp_path.iterdir())) == 200
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(pow, 1, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(abs, [1])
    executor.shutdown()


def test_shutdown_cancels_what_is_not_sent(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    executor = fallow.Executor(max_workers=1)
    futures = [executor.submit(wait_file, str(gate)) for _ in range(100)]
    wait_for("the first call to be sent", futures[0].running)
    threading.Timer(0.2, gate.touch).start()
    executor.shutdown(cancel_futures=True)
    assert futures[-1].cancelled()
    assert futures[0].result() == str(gate)
    assert all(future.done() for future in futures)


def test_ctrl_c_waits_for_nothing(tmp_path: Path) -> None:
    executor = fallow.Executor(max_workers=1)
    futures = [executor.submit(wait_file, str(tmp_path / "never")) for _ in range(3)]
    results = executor.map(wait_file, [str(tmp_path / "never")] * 3)
    wait_for("the first call to be sent", futures[0].running)
    with pytest.raises(KeyboardInterrupt), executor:
        raise KeyboardInterrupt
    assert all(isinstance(future.exception(60), errors.JobCancelled) for future in futures)
    with pytest.raises(CancelledError):
        next(results)
    assert list(results) == [], "as after any exception of the iterator itself"


def test_arguments_of_the_executor() -> None:
    for bad in (0, -1):
        with pytest.raises(ValueError, match="max_workers"):
            fallow.Executor(bad)
    with pytest.raises(TypeError, match="max_workers"):
        fallow.Executor("2")  # type: ignore[arg-type]
    with pytest.raises(errors.SettingError, match="unexpected"):
        fallow.Executor(mp_context=None)
    with fallow.Executor(timeout=0.3, name="short") as executor:
        assert isinstance(executor.submit(time.sleep, 60).exception(90), TimeoutError)


def test_files_and_objects_as_arguments(executor: fallow.Executor, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    file = fallow.File(path)
    assert executor.submit(tasks.read_text.fn, file).result(60) == ("notes.txt", "hello")
    assert executor.submit(sum, fallow.put([1, 2, 3])).result(60) == 6
    deep = fallow.File(path)
    error = executor.submit(len, [deep]).exception(60)
    assert isinstance(error, errors.UnserialisableInput)
    assert "upload()" in str(error)
    assert executor.submit(len, [deep.upload()]).result(60) == 1


# ---------------------------------------------------------------- map


def test_map(executor: fallow.Executor) -> None:
    assert list(executor.map(pow, range(5), itertools.count(2))) == [n ** (n + 2) for n in range(5)]
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs)) == []
    assert list(executor.map(abs, range(10_000), chunksize=100)) == list(range(10_000))
    assert list(executor.map(tasks.square.fn, range(10))) == [n * n for n in range(10)]
    for bad in ({"chunksize": 0}, {"buffersize": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            executor.map(abs, [1], **bad)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(abs, [1], buffersize=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        executor.map(abs, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"buffersize": 2}, {"buffersize": 2, "chunksize": 4}])
def test_iteration_goes_on_after_an_exception(executor: fallow.Executor, options: dict[str, int]) -> None:
    results = executor.map(raises_for, range(6), **options)
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="bad 3"):
        next(results)
    assert list(results) == [4, 5]


@pytest.mark.parametrize("options", [{}, {"buffersize": 2}])
def test_map_times_out(executor: fallow.Executor, options: dict[str, int], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = executor.map(wait_file, [str(gate)], timeout=0.1, **options)
    with pytest.raises(TimeoutError, match=r"not all there within the timeout given to Executor\.map") as caught:
        next(results)
    assert type(caught.value) is TimeoutError, "as the standard executors raise it"
    assert "OutOfTime" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(StopIteration):
        next(results)
    gate.touch()


@pytest.mark.parametrize("options", [{}, {"buffersize": 2}, {"buffersize": 2, "chunksize": 3}])
def test_a_closed_map_yields_no_more(executor: fallow.Executor, options: dict[str, int]) -> None:
    results: Any = executor.map(abs, range(10), **options)
    assert next(results) == 0
    results.close()
    assert list(results) == []


def test_arguments_are_let_go_once_sent(executor: fallow.Executor) -> None:
    thing = Thing()
    seen = weakref.ref(thing)
    gc.disable()
    try:
        executor.submit(make_object, [thing]).result(60)
        del thing
        wait_for("the argument to be let go", lambda: seen() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("options", [{}, {"chunksize": 4}, {"buffersize": 4}])
def test_a_map_holds_no_result_that_it_has_yielded(executor: fallow.Executor, options: dict[str, int]) -> None:
    for result in executor.map(make_object, range(10), **options):
        seen = weakref.ref(result)
        del result
        assert seen() is None


@pytest.mark.parametrize("timeout_s", [0.0, 0.002])
def test_what_was_cancelled_before_it_was_sent_holds_up_no_end(timeout_s: float, tmp_path: Path) -> None:
    with fallow.Executor() as executor:
        results = executor.map(wait_file, [str(tmp_path / "never")], timeout=timeout_s, buffersize=2)
        with pytest.raises(TimeoutError):
            next(results)
        (tmp_path / "never").touch()  # should it have been sent after all


def test_a_timeout_of_a_task_is_not_one_of_the_map(executor: fallow.Executor) -> None:
    def late(x: int) -> int:
        if x == 1:
            raise TimeoutError("of the task")
        return x

    results = executor.map(late, range(3), timeout=100)
    assert next(results) == 0
    with pytest.raises(TimeoutError, match="of the task"):
        next(results)
    assert next(results) == 2


def test_buffersize_bounds_what_is_drawn(executor: fallow.Executor) -> None:
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        for n in itertools.count():
            drawn += 1
            yield n

    results = executor.map(abs, source(), buffersize=3)
    assert drawn == 3
    assert [next(results), next(results)] == [0, 1]
    assert drawn == 5
    chunked = executor.map(abs, range(10), buffersize=2, chunksize=3)
    assert list(chunked) == list(range(10))


@pytest.mark.parametrize("chunksize", [1, 3])
def test_an_error_of_the_inputs_comes_after_the_results_before_it(executor: fallow.Executor, chunksize: int) -> None:
    def inputs() -> Iterator[int]:
        yield from range(4)
        raise KeyError("input")

    results = executor.map(tasks.square, inputs(), buffersize=1, chunksize=chunksize)
    assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    with pytest.raises(KeyError, match="input"):
        next(results)
    assert list(results) == []


def test_results_of_a_map_after_shutdown() -> None:
    with fallow.Executor() as executor:
        results = executor.map(tasks.square.fn, range(5000))
    assert list(results) == [n * n for n in range(5000)]


def test_a_map_for_its_effects_alone_runs_to_its_end(tmp_path: Path) -> None:
    with fallow.Executor() as executor:
        executor.map(touch, itertools.repeat(str(tmp_path)), range(100))
    assert len(list(tmp_path.iterdir())) == 100


def test_a_map_left_in_the_middle_is_cancelled(tmp_path: Path) -> None:
    executor = fallow.Executor()
    before = {info.job_id for info in fallow.jobs()}
    results = executor.map(touch, itertools.repeat(str(tmp_path)), itertools.count())
    next(results)
    del results
    gc.collect()
    (new,) = [info for info in fallow.jobs() if info.job_id not in before]
    wait_for("the map to end", lambda: fallow.job(new.job_id).status().state == "cancelled")
    executor.shutdown()


def test_max_workers_caps_how_many_run_at_once(tmp_path: Path) -> None:
    def alone(folder: str, n: int) -> int:
        mark = os.path.join(folder, "busy")
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # raises where another one runs
        time.sleep(0.02)
        os.unlink(mark)
        return n

    with fallow.Executor(max_workers=1) as executor:
        run: Callable[[int], int] = functools.partial(alone, str(tmp_path))
        assert list(executor.map(run, range(10))) == list(range(10))
        futures = [executor.submit(run, n) for n in range(10)]
        assert [future.result(60) for future in futures] == list(range(10))


def test_callbacks_may_wait_and_use_the_pool(executor: fallow.Executor, tmp_path: Path) -> None:
    """They hold up nobody but each other: what they wait for may itself wait for the pool."""
    file = tmp_path / "lines.txt"
    file.write_text("one\ntwo\n")
    held, done = threading.Lock(), threading.Event()
    seen: list[Any] = []

    def call_back(future: Future[int]) -> None:
        with held:
            seen.append((future.result(), executor.submit(os.path.getsize, fallow.File(file)).result(60)))
            done.set()

    with held:
        future = executor.submit(pow, 2, 3)
        future.add_done_callback(call_back)
        assert future.result(60) == 8
        assert fallow.put("something").get() == "something"
        assert not done.is_set()
    assert done.wait(60)
    assert seen == [(8, 8)]


def test_shutdown_waits_for_callbacks_whatever_they_raise(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def call_back(future: Future[int]) -> None:
        time.sleep(0.01)
        seen.append(future.result())
        raise ValueError("of the callback")

    with fallow.Executor() as executor:
        for n in range(5):
            executor.submit(abs, -n).add_done_callback(call_back)
    assert sorted(seen) == list(range(5))
    assert caplog.text.count("ValueError: of the callback") == 5


def test_a_map_that_is_cancelled_says_so_also_to_who_waits(tmp_path: Path) -> None:
    executor = fallow.Executor()
    results = executor.map(wait_file, [str(tmp_path / "never")] * 3)
    seen: list[BaseException] = []

    def read() -> None:
        try:
            next(results)
        except BaseException as error:
            seen.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_for("the reader to wait", lambda: executor._maps)
    executor.shutdown(wait=False, cancel_futures=True)
    reader.join(60)
    assert [type(error) for error in seen] == [CancelledError]
