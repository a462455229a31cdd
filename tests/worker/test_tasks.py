"""Orders that end: results, failures, retries, reduce, budgets and limits, in a real worker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fallow.agent.worker_api import RunOrder
from fallow.model.ids import Digest
from fallow.model.job import Blob, RetryPolicy
from fallow.wire.messages import InputPage
from fallow.wire.page import Failure
from tests.worker.harness import Bench, Recorder, results_of


async def test_results_come_in_order(bench: Bench) -> None:
    assert await bench.map(lambda x: x * x, range(1000)) == [x * x for x in range(1000)]
    assert await bench.map(lambda x: x * x, ["unused"], name="a", stop=0) == []


async def test_only_the_range_of_the_order_runs(bench: Bench) -> None:
    reports = await bench.recorder.ended(
        bench.run(lambda x: -x, list(range(100)), start=15, stop=95, page_starts=(0, 10, 20, 90))
    )
    assert results_of(reports) == {x: -x for x in range(15, 95)}
    assert bench.worker.progress() == (None, -1, 0.0)


async def test_inputs_may_lie_in_files_and_be_written_to(bench: Bench, tmp_path: Path) -> None:
    def grow(array: Any) -> Any:
        array += 1
        return array.sum()

    arrays = [np.zeros(100_000) for _ in range(3)]
    paths = {0: str(tmp_path / "a"), 2: str(tmp_path / "b")}
    before = None
    for _ in range(2):
        assert await bench.map(grow, arrays, page_starts=(0, 2), paths=paths) == [100_000] * 3
        now = Path(paths[0]).read_bytes()
        assert before in (None, now)
        before = now


async def test_inputs_that_cannot_be_read_are_given_back(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "page"
    token = bench.run(lambda x: x, range(4), page_starts=(0, 2), paths={2: str(path)}, before=path.unlink)
    reports = await bench.recorder.ended(token)
    assert results_of(reports) == {0: 0, 1: 1}
    assert [interval for report in reports for interval in report.give_back] == [(2, 4)]
    assert "cannot be read on this node" in bench.recorder.lines[0].text
    assert await bench.map(lambda x: x, range(4)) == [0, 1, 2, 3]


async def test_an_order_without_its_inputs_is_refused(bench: Bench) -> None:
    order = RunOrder((1, 1), 0, 1, 1.0, (InputPage(0, 1, Blob(Digest("1" * 64), 5)),))
    with pytest.raises(ValueError, match="neither bytes nor a file"):
        bench.worker.run(bench.spec(), b"", order)


async def test_a_million_results_come_in_bounded_pages(bench: Bench) -> None:
    token = bench.run(lambda x: x, range(300_000))
    reports = await bench.recorder.ended(token)
    pages = [page for report in reports for page in report.results]
    assert all(page.page.data is not None and page.page.size <= 256 * 1024 for page in pages)
    assert sum(page.stop - page.start for page in pages) == 300_000
    assert len(pages) < 20


async def test_failures_stand_beside_results(bench: Bench) -> None:
    def work(x: int) -> int:
        if x % 3 == 1:
            raise KeyError(f"bad {x}")
        if x % 3 == 2:
            raise SystemExit(x)
        return x

    token = bench.run(work, range(9))
    reports = await bench.recorder.ended(token)
    found = results_of(reports)
    for x in range(9):
        result = found[x]
        if x % 3 == 0:
            assert result == x
        else:
            assert isinstance(result, Failure)
            assert (result.kind, result.type_name) == ("raised", "KeyError" if x % 3 == 1 else "SystemExit")
            assert "in work" in result.traceback
            assert "fallow/worker" not in result.traceback
            assert result.exception is not None
    assert [i for report in reports for page in report.results for i in page.failed] == [1, 2, 4, 5, 7, 8]
    assert sum(page.failed_count for report in reports for page in report.results) == 6


async def test_notes_and_causes_are_in_the_traceback(bench: Bench) -> None:
    def work(x: int) -> None:
        try:
            raise OSError("inner")
        except OSError as error:
            outer = ValueError("outer")
            outer.add_note("look here")
            raise outer from error

    (failure,) = await bench.map(work, [1])
    assert isinstance(failure, Failure)
    assert "OSError: inner" in failure.traceback
    assert "look here" in failure.traceback


async def test_an_exception_that_cannot_travel_leaves_its_words(bench: Bench) -> None:
    def work(x: int) -> None:
        import threading

        error = ValueError("1 and 2")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    (failure,) = await bench.map(work, [1])
    assert isinstance(failure, Failure)
    assert failure.exception is None
    assert failure.message == "1 and 2"


async def test_unserialisable_results_fail_alone(bench: Bench) -> None:
    def work(x: int) -> Any:
        return {"g": (y for y in ())} if x in (3, 50) else x

    found = await bench.map(work, range(100))
    for x, result in enumerate(found):
        if x in (3, 50):
            assert isinstance(result, Failure)
            assert result.kind == "unserialisable"
            assert "['g'] is a generator" in result.message
        else:
            assert result == x


async def test_inputs_that_cannot_be_loaded_fail_as_tasks(bench: Bench, tmp_path: Path) -> None:
    import sys
    import types

    module = types.ModuleType("only_here")
    exec("class Thing:\n    pass", vars(module))
    module.Thing.__module__ = "only_here"
    sys.modules["only_here"] = module
    try:
        found = await bench.map(lambda x: 1, [module.Thing(), module.Thing(), 7], page_starts=(0, 2))
    finally:
        del sys.modules["only_here"]
    assert [getattr(item, "type_name", item) for item in found] == ["ModuleNotFoundError"] * 2 + [1]


class TestRetries:
    async def test_what_raised_runs_again_after_the_rest(self, bench: Bench) -> None:
        def work(x: int, seen: list[int] = []) -> list[int]:  # noqa: B006
            seen.append(x)
            if x in (1, 3) and seen.count(x) < 3:
                raise ValueError(x)
            return list(seen)

        found = await bench.map(work, range(5), spec=bench.spec(retry=RetryPolicy(2)))
        assert found[1] == [0, 1, 2, 3, 4, 1, 3, 1]
        assert found[4] == [0, 1, 2, 3, 4]

    async def test_the_last_attempt_fails(self, bench: Bench) -> None:
        def work(x: int, seen: list[int] = []) -> int:  # noqa: B006
            seen.append(x)
            if x == 1:
                raise ValueError(seen.count(1))
            return x

        spec = bench.spec(retry=RetryPolicy(3))
        found = await bench.map(work, range(3), spec=spec)
        assert isinstance(found[1], Failure)
        assert found[1].message == "4"
        found = await bench.map(work, [0, 1], start=1, stop=2, spec=spec, attempt=3)
        assert isinstance(found[0], Failure)
        assert found[0].message == "5"

    async def test_only_named_exceptions_are_retried(self, bench: Bench) -> None:
        def work(x: int, seen: list[int] = []) -> int:  # noqa: B006
            seen.append(x)
            raise (KeyError if x else ValueError)(seen.count(x))

        spec = bench.spec(retry=RetryPolicy(1))
        first, second = await bench.map(work, range(2), spec=spec, retry_on=(LookupError,))
        assert isinstance(first, Failure)
        assert isinstance(second, Failure)
        assert (first.message, second.message) == ("1", "2")

    async def test_long_back_offs_go_back(self, bench: Bench) -> None:
        def work(x: int) -> int:
            if x == 2:
                raise ValueError
            return x

        token = bench.run(work, range(4), spec=bench.spec(retry=RetryPolicy(2, backoff_s=30)), attempt=0)
        reports = await bench.recorder.ended(token)
        assert sorted(results_of(reports)) == [0, 1, 3]
        ((index, attempt, delay),) = [
            (later.index, later.attempt, later.delay_s) for report in reports for later in report.retry_later
        ]
        assert (index, attempt) == (2, 1)
        assert 0 < delay <= 30


class TestReduce:
    async def reduced(self, bench: Bench, fn: Any, items: Any, combine: Any, **settings: Any) -> dict[Any, Any]:
        reports = await bench.recorder.ended(
            bench.run(fn, items, spec=bench.spec(reduce=True, **settings), reduce=combine)
        )
        assert all(report.reduced for report in reports)
        bounds = {page.start: page.stop for report in reports for page in report.results}
        return {(start, bounds[start]): value for start, value in results_of(reports).items()}

    async def test_a_range_becomes_one_value_in_order(self, bench: Bench) -> None:
        found = await self.reduced(bench, str, range(12), lambda a, b: a + b)
        assert found == {(0, 12): "01234567891011"}

    async def test_a_failed_task_splits_the_range(self, bench: Bench) -> None:
        def work(x: int) -> str:
            if x == 3:
                raise ValueError
            return str(x)

        found = await self.reduced(bench, work, range(6), lambda a, b: a + b)
        failure = found.pop((3, 4))
        assert failure.kind == "raised"
        assert found == {(0, 3): "012", (4, 6): "45"}

    async def test_a_retry_fills_the_gap_in_order(self, bench: Bench) -> None:
        def work(x: int, seen: list[int] = []) -> str:  # noqa: B006
            seen.append(x)
            if x in (0, 3) and seen.count(x) == 1:
                raise ValueError
            return str(x)

        found = await self.reduced(bench, work, range(6), lambda a, b: a + b, retry=RetryPolicy(1))
        assert found == {(0, 6): "012345"}

    async def test_a_value_that_cannot_be_combined_fails(self, bench: Bench) -> None:
        found = await self.reduced(bench, lambda x: None if x == 2 else x, range(4), lambda a, b: a + b)
        assert found.pop((2, 3)).type_name == "TypeError"
        assert found == {(0, 2): 1, (3, 4): 3}


class TestBudgets:
    async def test_the_rest_is_given_back_when_the_budget_ends(self, bench: Bench) -> None:
        def work(x: int) -> int:
            time.sleep(0.05)
            return x

        reports = await bench.recorder.ended(bench.run(work, range(1000), budget_s=0.3))
        done = results_of(reports)
        ((start, stop),) = [interval for report in reports for interval in report.give_back]
        assert sorted(done) == list(range(start))
        assert stop == 1000
        assert start >= 1
        assert sum(report.run_s for report in reports) >= 0.045 * start

    async def test_at_least_one_task_runs(self, bench: Bench) -> None:
        reports = await bench.recorder.ended(bench.run(lambda x: x, range(10), budget_s=0.0))
        assert results_of(reports) == {0: 0}
        assert reports[-1].give_back == ((1, 10),)

    async def test_results_come_early_while_a_long_task_runs(self, bench: Bench, tmp_path: Path) -> None:
        gate = tmp_path / "gate"

        def work(x: int) -> int:
            while x == 7 and not gate.exists():
                time.sleep(0.01)
            return x

        token = bench.run(work, range(10))
        await bench.recorder.until(lambda: sorted(results_of(bench.recorder.reports)) == list(range(7)))
        assert not any(report.ended for report in bench.recorder.reports)
        assert bench.worker.progress()[:2] == (token, 7)
        gate.touch()
        assert sorted(results_of(await bench.recorder.ended(token))) == list(range(10))

    async def test_nothing_begins_at_or_after_the_limit(self, bench: Bench, tmp_path: Path) -> None:
        gate = tmp_path / "gate"

        def work(x: int) -> int:
            while x == 7 and not gate.exists():
                time.sleep(0.01)
            return x

        token = bench.run(work, range(100))
        await bench.until_index(token, 7)
        bench.worker.limit(token, 40)
        gate.touch()
        reports = await bench.recorder.ended(token)
        assert sorted(results_of(reports)) == list(range(40))
        assert all(report.give_back == () for report in reports)

    async def test_large_results_are_handed_in_on_the_way(self, bench: Bench) -> None:
        token = bench.run(lambda x: b"x" * 3_000_000, range(12))
        reports = await bench.recorder.ended(token)
        assert len(reports) > 3
        assert all(len(value) == 3_000_000 for value in results_of(reports).values())  # type: ignore[arg-type]


class TestClassesAndFunctions:
    async def test_an_instance_is_made_once_per_worker(self, bench: Bench) -> None:
        class Model:
            def load(self) -> None:
                self.calls = 0

            def count(self, x: int) -> int:
                self.calls += 1
                return self.calls

        hooks = (Model, (), {}, ("load",), ())
        assert await bench.map("count", range(3), cls_hooks=hooks, name="m") == [1, 2, 3]  # type: ignore[arg-type]
        assert await bench.map("count", range(2), cls_hooks=hooks, name="m") == [4, 5]  # type: ignore[arg-type]

    async def test_few_functions_stay_loaded(self, bench: Bench) -> None:
        def count(x: int, calls: list[int] = []) -> int:  # noqa: B006
            calls.append(x)
            return len(calls)

        for _ in range(2):
            for name in "abcd":
                await bench.map(count, range(1), name=name)
        assert await bench.map(count, range(1), name="a") == [3]
        await bench.map(count, range(1), name="e")  # puts out b, the least recently used
        assert await bench.map(count, range(1), name="c") == [3]
        assert await bench.map(count, range(1), name="b") == [1]

    async def test_exit_methods_run_when_the_worker_stops(self, bench: Bench, tmp_path: Path) -> None:
        mark = tmp_path / "mark"

        class Model:
            def bye(self) -> None:
                mark.touch()

            def work(self, x: int) -> int:
                return x

        await bench.map("work", range(1), cls_hooks=(Model, (), {}, (), ("bye",)))  # type: ignore[arg-type]
        bench.worker.stop()
        async with asyncio.timeout(60):
            assert await bench.worker.exited == 0
        assert mark.exists()
        assert not bench.recorder.deaths

    async def test_a_function_that_cannot_be_loaded_ends_the_worker_in_words(self, bench: Bench) -> None:
        class Model:
            def load(self) -> None:
                raise RuntimeError("no weights here")

        bench.run("load", range(3), cls_hooks=(Model, (), {}, ("load",), ()))  # type: ignore[arg-type]
        death = await bench.recorder.death()
        assert (death.kind, death.index) == ("setup", -1)
        assert "no weights here" in death.message
        assert "in load" in death.detail


async def test_workers_of_one_zygote_are_apart(bench: Bench) -> None:
    second = Recorder()
    other = Bench(bench.zygote, await bench.zygote.start_worker(1, second), second)

    def who(x: int) -> tuple[int, float]:
        import os
        import random

        return os.getpid(), random.random()

    ((pid, number),) = await bench.map(who, [1])  # type: ignore[misc]
    ((other_pid, other_number),) = await other.map(who, [1])  # type: ignore[misc]
    assert pid == bench.worker.pid
    assert other_pid == other.worker.pid
    assert number != other_number


@pytest.mark.slow
async def test_a_result_of_300_mb(bench: Bench) -> None:
    token = bench.run(lambda x: bytes(300_000_000) if x else x, range(2))
    reports = await bench.recorder.ended(token)
    found = results_of(reports)
    assert found[0] == 0
    assert len(found[1]) == 300_000_000  # type: ignore[arg-type]
    for report in reports:
        for path in report.files.values():
            Path(path).unlink()
