"""The task loop by itself: whatever happens, every task of an order is accounted for exactly once."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fallow.model.job import RetryPolicy
from fallow.wire.code import Loaded
from fallow.wire.page import Failure, decode_page, encode_inputs
from fallow.worker import orders
from fallow.worker import outbox as outbox_module
from fallow.worker import runner as runner_module
from fallow.worker.block import Block
from fallow.worker.outbox import Outbox, Piece
from fallow.worker.pages import PageWriter
from fallow.worker.runner import Runner


def nothing() -> None:
    pass


def words_for(stop: int) -> memoryview:
    words = memoryview(bytearray(orders.MAP_BYTES)).cast("q")
    words[orders.INDEX] = words[orders.REACH] = words[orders.ENCODING] = -1
    words[orders.LIMIT] = stop
    return words


def run_order(
    order: orders.Run, call: Any, words: memoryview, reduce: Any = None, block: Block | None = None, chunk: int = 1
) -> list[orders.Report]:
    reports: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        loaded = Loaded("f", call, reduce, (ValueError,), {}, nothing)
        outbox = Outbox(order, reports.append, PageWriter(folder, "x"), early=not order.reduce)
        runner = Runner(order, loaded, words, outbox, block or Block(words), chunk)
        runner.run()
        runner.end(runner.retry())
    assert words[orders.REACH] <= words[orders.INDEX] + 1
    assert [report.ended for report in reports] == [False] * (len(reports) - 1) + [True]
    return reports


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    total = draw(st.integers(1, 60))
    start = draw(st.integers(0, total - 1))
    stop = draw(st.integers(start + 1, total))
    return {
        "cuts": sorted(draw(st.sets(st.integers(1, total - 1), max_size=5))) if total > 1 else [],
        "total": total,
        "start": start,
        "stop": stop,
        "flaky": draw(st.dictionaries(st.integers(start, stop - 1), st.integers(1, 4), max_size=8)),
        "broken": draw(st.sets(st.integers(start, stop - 1), max_size=8)),
        "retries": draw(st.integers(0, 2)),
        "limit": draw(st.none() | st.tuples(st.integers(start, stop - 1), st.integers(start, stop))),
        "budget": draw(st.sampled_from([60.0, 60.0, 0.0])),
        "block": draw(st.sampled_from([0, 1, 3, 7])),
        "looks": draw(st.dictionaries(st.integers(start, stop - 1), st.integers(1, 2), max_size=5)),
    }


@settings(max_examples=100, deadline=None)
@given(cases(), st.booleans())
def test_every_task_is_accounted_for_once(case: dict[str, Any], reduce: bool) -> None:
    start, stop, total = case["start"], case["stop"], case["total"]
    bounds = [0, *case["cuts"], total]
    pages = tuple(
        orders.OrderPage(first, last, b"".join(encode_inputs(range(first, last)))) for first, last in pairwise(bounds)
    )
    words = words_for(stop)
    block = Block(words)
    calls: Counter[int] = Counter()
    cut = stop

    def call(x: int) -> Any:
        nonlocal cut
        assert block.in_progress() == x
        assert words[orders.INDEX] <= x < max(words[orders.INDEX] + 1, words[orders.REACH])
        assert x < cut
        for _ in range(case["looks"].get(x, 0)):
            block.look()
        if case["looks"].get(x, 0) == 2:
            assert (words[orders.INDEX], block.in_progress()) == (x, x)
            assert words[orders.REACH] <= x + 1
        calls[x] += 1
        if case["limit"] and case["limit"][0] == x and calls[x] == 1:
            cut = max(case["limit"][1], x + 1, words[orders.REACH])
            words[orders.LIMIT] = min(words[orders.LIMIT], cut)
        if calls[x] <= case["flaky"].get(x, 0):
            raise ValueError
        if x in case["broken"]:
            raise KeyError
        return [x] if reduce else x

    order = orders.Run(
        "j", (1, 1), start, stop, case["budget"], pages, retry=RetryPolicy(case["retries"]), reduce=reduce
    )
    with pytest.MonkeyPatch.context() as patch:
        if case["block"]:
            patch.setattr(runner_module, "BLOCK_TASKS", case["block"])
            patch.setattr(runner_module, "LEAST_CHUNK_IN_BLOCKS", 1)
        reports = run_order(
            order, call, words, (lambda a, b: a + b) if reduce else None, block, 1000 if case["block"] else 1
        )
    seen: Counter[int] = Counter()
    for report in reports:
        for first, last in report.give_back:
            seen.update(range(first, min(last, cut)))
        for page in report.results:
            seen.update(range(page.start, page.stop))
            assert page.data is not None
            items = decode_page(page.data)
            failed = set()
            if reduce:
                (item,) = items
                if isinstance(item, Failure):
                    failed = set(range(page.start, page.stop))
                else:
                    assert item == list(range(page.start, page.stop))
            else:
                for index, item in enumerate(items, page.start):
                    if isinstance(item, Failure):
                        failed.add(index)
                    else:
                        assert item == index
            assert set(page.failed) == failed
            assert page.failed_count == len(failed)
            for index in failed:
                assert index in case["broken"] or case["flaky"][index] > case["retries"]
    assert all(count == 1 for count in seen.values())
    # What the agent's limit cut off is the agent's to give back; so are retries that it came before.
    missing = set(range(start, stop)) - set(seen)
    assert all(index >= cut for index in missing)


def test_the_helper_takes_what_is_there_while_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_HAND_IN_S", "LONGEST_INTERVAL_S", "HELP_AFTER_S"):
        monkeypatch.setattr(outbox_module, name, 0.0)
    count = 200_000
    page = orders.OrderPage(0, count, b"".join(encode_inputs(range(count))))
    order = orders.Run("j", (1, 1), 0, count, 60.0, (page,))
    reports: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(order, reports.append, PageWriter(folder, "x"), early=True)
        done = threading.Event()

        def help_all_the_time() -> None:
            while not done.is_set():
                outbox.help()

        helper = threading.Thread(target=help_all_the_time)
        helper.start()
        try:
            loaded = Loaded("f", lambda x: x, None, (), {}, nothing)
            words = words_for(count)
            runner = Runner(order, loaded, words, outbox, Block(words))
            runner.run()
            runner.end(runner.retry())
        finally:
            done.set()
            helper.join()
    found: list[object] = []
    for report in reports:
        for written in report.results:
            assert written.start == len(found)
            found += decode_page(written.data)
    assert found == list(range(count))


def test_what_changes_while_the_helper_encodes_is_left_for_later() -> None:
    order = orders.Run("j", (1, 1), 0, 2, 60.0, ())
    reports: list[Any] = []

    class Moody:
        ready = False

        def __reduce__(self) -> Any:
            if not self.ready:
                raise RuntimeError("dictionary changed size during iteration")
            return (str, ("done",))

    with tempfile.TemporaryDirectory() as folder:
        times = iter([0.0, 0.0, *[5.0] * 100])
        outbox = Outbox(order, reports.append, PageWriter(folder, "x"), early=True, clock=lambda: next(times))
        moody = Moody()
        outbox.open(0).extend([moody, 7])
        outbox.help()
        assert reports == []
        moody.ready = True
        outbox.end((), ())
    assert [decode_page(page.data) for page in reports[-1].results] == [["done", 7]]


def test_reports_are_bounded() -> None:
    order = orders.Run("j", (1, 1), 0, 100, 60.0, ())
    reports: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(order, reports.append, PageWriter(folder, "x"), early=True)
        outbox.open(0).extend([bytes(100_000)] * 100)
        outbox.end((), ())
    sizes = [sum(len(page.data) for page in report.results) for report in reports]
    assert len(sizes) > 4
    assert max(sizes) <= 2 * 1024 * 1024
    assert [report.ended for report in reports][-2:] == [False, True]


def test_a_result_that_the_disk_has_no_room_for_is_named_and_left_out() -> None:
    order = orders.Run("j", (1, 1), 5, 8, 60.0, ())
    reports: list[Any] = []
    outbox = Outbox(order, reports.append, PageWriter("/nonexistent/folder", "x"), early=True)
    outbox.open(5).extend([1, bytes(1_000_000), 2])
    outbox.end((), ())
    (report,) = reports
    assert [(page.start, page.stop) for page in report.results] == [(5, 6), (7, 8)]
    ((index, size, words),) = report.no_room
    assert index == 6
    assert size > 1_000_000
    assert words.startswith("the node could not keep a result of 1,000,0")


def test_a_combined_result_that_the_disk_has_no_room_for_is_named_by_its_first_task() -> None:
    writer = PageWriter("/nonexistent/folder", "x")
    assert writer.write_reduced(5, 7, bytes(1_000_000)) == []
    ((index, size, words),) = writer.no_room
    assert index == 5
    assert size > 1_000_000
    assert words.startswith("the node could not keep a result of 1,000,0")


def test_pieces_know_where_they_end() -> None:
    piece = Piece(4)
    piece.values += [1, 2]
    assert piece.stop == 6
