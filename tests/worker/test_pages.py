"""Results on their way out of a worker: what goes into files, and what many small ones come to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from fallow.agent.worker_files import WorkerFiles
from fallow.agent.worker_reports import report_of
from fallow.model.job import INLINE_LIMIT_BYTES
from fallow.wire.code import Loaded
from fallow.wire.page import decode_page, encode_inputs
from fallow.worker import orders
from fallow.worker.block import Block
from fallow.worker.outbox import PRESSED_TASKS, Outbox
from fallow.worker.pages import PageWriter
from fallow.worker.runner import Runner
from tests.worker.test_runner import nothing, words_for

FILES_FROM = 48 * 1024


def run_many(count: int, flow_s: float) -> list[Any]:
    page = orders.OrderPage(0, count, b"".join(encode_inputs(range(count))))
    order = orders.Run("j", (1, 1), 0, count, 60.0, (page,))
    reports: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(order, reports.append, PageWriter(folder, "x"), early=True, interval_s=60.0, flow_s=flow_s)
        words = words_for(count)
        loaded = Loaded("f", lambda x: x, None, (), {}, nothing)
        runner = Runner(order, loaded, words, outbox, Block(words), chunk=8192)
        runner.run()
        assert words[orders.ENCODING] == -1
        runner.end(runner.retry())
    return reports


def test_many_small_results_come_in_pages_that_follow_each_other() -> None:
    found: list[object] = []
    for report in run_many(300_000, flow_s=60.0):
        for page in report.results:
            assert page.start == len(found)
            assert page.stop - page.start <= PRESSED_TASKS
            found += decode_page(page.data)
    assert found == list(range(300_000))


def test_encoded_results_are_handed_in_while_the_range_goes_on() -> None:
    # No time is too short, so that what a slow machine is late with does not matter.
    reports = run_many(2_000_000, flow_s=0.0)
    assert len(reports) > 2
    assert reports[0].results[0].stop <= PRESSED_TASKS


def test_pages_of_some_size_go_into_files_where_the_reader_finds_them(tmp_path: Path) -> None:
    writer = PageWriter(str(tmp_path), "x")
    few, many = list(range(1000)), list(range(100_000, 112_000))
    assert all(page.path == "" for page in writer.write(0, many, {}))
    writer.files_from = FILES_FROM
    assert [page.path for page in writer.write(0, few, {})] == [""]
    (page,) = writer.write(0, many, {})
    assert page.data is None
    assert os.path.getsize(page.path) == page.size <= INLINE_LIMIT_BYTES
    assert decode_page(Path(page.path).read_bytes()) == many


def test_what_finds_no_room_in_a_file_goes_in_a_message(tmp_path: Path) -> None:
    writer = PageWriter(str(tmp_path / "gone"), "x")
    writer.files_from = FILES_FROM
    many = list(range(100_000, 112_000))
    (page,) = writer.write(0, many, {})
    assert page.path == ""
    assert page.failed_count == 0
    assert page.data is not None
    assert decode_page(page.data) == many


def test_the_same_results_twice_leave_one_file(tmp_path: Path) -> None:
    writer = PageWriter(str(tmp_path), "x")
    writer.files_from = FILES_FROM
    pages = [*writer.write(0, ["same"] * 12_000, {}), *writer.write(12_000, ["same"] * 12_000, {})]
    assert len(os.listdir(tmp_path)) == 2
    report = report_of(orders.Report((1, 1), tuple(pages)), (), WorkerFiles(None, str(tmp_path), 1))
    assert [page.page.digest for page in report.results] == [pages[0].digest] * 2
    assert os.listdir(tmp_path) == [os.path.basename(report.files[pages[0].digest])]
