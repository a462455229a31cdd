"""Fallow in a notebook's kernel: what tasks print, progress, errors, interrupts, and an end that leaves nothing."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import pytest

from tests.pool import MARK, wait_for_none

pytest.importorskip("ipykernel")
from jupyter_client.manager import KernelManager

pytestmark = [
    pytest.mark.slow,  # a kernel, and a pool in it
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

LIMIT_S = 100.0
BEGIN = """
import fallow, os, time
app = fallow.App("x")

@app.function
def speak(x):
    print("hello from", x)
    return x

@app.function
def divide(x):
    return 1 / x

@app.function
def nap(x, seconds):
    print("naps")
    time.sleep(seconds)
    return x
"""


class Cell(NamedTuple):
    """What came of it."""

    error: str
    """Its traceback, without colours."""
    shown: list[str]
    """Texts, bundles as HTML; what came for other cells meanwhile too."""
    elsewhere: list[str]


class Kernel:
    def __init__(self, env: dict[str, str]) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel(env=env)
        self._client = self.manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=LIMIT_S)

    def run(self, code: str, until: str = "", then: Callable[[], None] | None = None) -> Cell:
        """Run a cell. `until`: a text that it shows, however late; `then` is called when that is there."""
        cell = self._client.execute(code)
        shown: list[str] = []
        elsewhere: list[str] = []
        error, is_over, deadline = "", False, time.monotonic() + LIMIT_S
        while not is_over or until not in "".join(shown):
            try:
                message = self._client.get_iopub_msg(timeout=deadline - time.monotonic())
            except Empty:
                raise AssertionError(f"{until!r} was not shown: {shown}, {elsewhere}, {error}") from None
            content: dict[str, Any] = message["content"]
            texts = shown if message["parent_header"].get("msg_id") == cell else elsewhere
            if message["msg_type"] == "status" and texts is shown:
                is_over = content["execution_state"] == "idle"
            elif message["msg_type"] == "stream":
                texts.append(content["text"])
            elif message["msg_type"] in ("display_data", "update_display_data"):
                texts.append(content["data"]["text/html"])
            elif message["msg_type"] == "error":
                error = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(content["traceback"]))
            if then is not None and until in "".join(shown):
                then()
                then = None
        return Cell(error, shown, elsewhere)

    def end(self) -> None:
        self._client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder: Path = tmp_path_factory.mktemp("notebook")
    env = {name: value for name, value in os.environ.items() if not name.startswith("FALLOW_")}
    env |= {"FALLOW_HOME": str(folder), "FALLOW_SLOTS": "1", "IPYTHONDIR": str(folder), MARK: str(folder)}
    kernel = Kernel(env)
    try:
        assert not kernel.run(BEGIN).error
        yield kernel
    finally:
        kernel.end()
    wait_for_none(str(folder))  # although the kernel was killed


def test_what_tasks_print_is_shown_in_the_cell_that_runs_them(kernel: Kernel) -> None:
    for code, label in (("list(speak.map([1]))", "[speak 0]"), ("speak.remote(1)", "[speak]"), ("speak.remote(1)", "")):
        cell = kernel.run(code, until="hello from 1\n")
        assert "this script" not in "".join(cell.shown)
        assert label in "".join(cell.shown)
        assert not cell.elsewhere


def test_progress_is_a_bar_in_the_cell(kernel: Kernel) -> None:
    code = "os.environ['FALLOW_PROGRESS'] = '1'\nn = sum(1 for _ in nap.starmap([(0, 0.1)] * 20))"
    cell = kernel.run(code, until='value="20" max="20"')
    assert not cell.error
    bars = [text for text in cell.shown if text.startswith("<progress")]
    assert bars[-1].endswith("1 node")
    assert "20 of 20 tasks" in bars[-1]
    assert "0 of" not in "".join(cell.elsewhere)


@pytest.mark.parametrize(
    "code",
    [
        "divide.remote(0)",
        "list(divide.map([1, 0]))",
        "with fallow.Executor() as executor: executor.submit(divide.fn, 0).result()",
        "await divide.remote.aio(0)",
    ],
)
def test_errors_of_tasks_show_the_cell_and_the_task(kernel: Kernel, code: str) -> None:
    error = kernel.run(code).error
    assert "ZeroDivisionError: division by zero" in error
    assert "return 1 / x" in error, "of the task"
    assert code.split()[-1] in error
    assert "fallow/sdk" not in error
    assert "concurrent/futures" not in error


def test_other_errors_are_shown_as_ever(kernel: Kernel) -> None:
    error = kernel.run("import json\njson.loads('?')").error
    assert "json/decoder.py" in error
    assert "JSONDecodeError" in error
    error = kernel.run("app.function(timeout='x')").error
    assert error.rstrip().endswith("SettingError: timeout='x' is not a number of seconds.")
    assert "fallow/sdk" not in error


@pytest.mark.parametrize("code", ["list(nap.starmap([(1, 60)] * 9))", "nap.remote(1, 60)"])
def test_an_interrupt_ends_the_cell_and_what_it_runs(kernel: Kernel, code: str) -> None:
    began = time.monotonic()
    error = kernel.run(code, until="naps\n", then=kernel.manager.interrupt_kernel).error
    assert "KeyboardInterrupt" in error
    assert "fallow/sdk" not in error
    assert kernel.run("print(sum(divide.map([1, 1])))", until="2.0").error == ""
    assert time.monotonic() - began < 50, "the only slot is free again"
