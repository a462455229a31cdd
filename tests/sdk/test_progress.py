"""When progress shows, and what it says."""

from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fallow.model.ids import JobId
from fallow.model.job import JobCounts, JobInfo, JobKind
from fallow.sdk import progress
from fallow.sdk.output import label
from fallow.sdk.progress import BAR_AFTER_S, LINES_AFTER_S, Progress, duration, fitted, wanted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("setting", "stream", "nested", "expected"),
    [
        ("", io.StringIO(), False, ("lines", LINES_AFTER_S)),
        ("", Terminal(), False, ("bar", BAR_AFTER_S)),
        ("1", io.StringIO(), False, ("lines", BAR_AFTER_S)),
        ("1", Terminal(), False, ("bar", 0.0)),
        ("0", Terminal(), False, None),
        ("1", Terminal(), True, None),
    ],
)
def test_when_it_shows(
    monkeypatch: pytest.MonkeyPatch, setting: str, stream: io.StringIO, nested: bool, expected: Any
) -> None:
    monkeypatch.setenv("FALLOW_PROGRESS", setting)
    monkeypatch.setattr(sys, "stderr", stream)
    assert wanted(nested) == expected


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    for kind, bar in (("dumb", False), ("xterm-256color", True)):
        monkeypatch.setenv("TERM", kind)
        assert wanted(nested=False) == (("bar", BAR_AFTER_S) if bar else ("lines", LINES_AFTER_S))


@pytest.mark.parametrize("width", [1, 10, 30, 40, 60, 80, 200])
@pytest.mark.parametrize("name", ["f", "a_function_with_quite_a_long_name"])
def test_a_bar_fits_its_terminal(width: int, name: str) -> None:
    parts = ["1,200/s", "3 min 20 s left", "1 failed", "2 nodes"]
    shown, bar, story = fitted(width, name, "12,000/240,000", parts)
    assert story.startswith("12,000/240,000")
    assert len(shown) + 1 + bar + 1 + len(story) <= max(width, len("12,000/240,000") + 3)
    assert bar == 0 or bar >= 4
    if width >= 40:
        assert shown[:11] == name[:11]
    if width >= 80:
        assert "1 failed" in story
    if width == 200:
        assert (shown, bar, story) == (name, 40, " · ".join(["12,000/240,000", *parts]))


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 42, 200, 7500)] == ["0 s", "42 s", "3 min 20 s", "2 h 5 min"]


def test_labels() -> None:
    assert label("square", 17) == "[square 17]"
    assert label("square", -1) == "[square]"
    assert label("square", 3, single=True) == "[square]"


def job(done: int, total: int) -> Any:
    counts = JobCounts(inputs=total, done=done, failed=2, retried=1)
    info = JobInfo(
        JobId("job-a"), "work", JobKind.MAP, "running", "", counts, total, False, "default", 0.0, nodes={"a": 1, "b": 2}
    )
    return SimpleNamespace(info=info, total=total, spec=SimpleNamespace(name="work", total_hint=-1))


def show_until(words: str, said: io.StringIO, shown: Progress) -> None:
    """Until the words were said, and then to its end."""
    waiting = threading.Event()
    for _ in range(3000):
        if words in said.getvalue():
            break
        waiting.wait(0.01)
    shown.close()
    shown.join(30)


@pytest.mark.parametrize("bar", [False, True])
def test_what_it_says(monkeypatch: pytest.MonkeyPatch, bar: bool) -> None:
    said = Terminal() if bar else io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(progress, "LINES_EVERY_S", (0.01,))
    monkeypatch.setattr(Progress, "_info", lambda self: self._job.info)
    monkeypatch.setenv("COLUMNS", "120")
    show_until("2 nodes", said, Progress(job(50, 200), style="bar" if bar else "lines", after_s=0.0))
    for words in ("work", "2 failed", "1 run again", "2 nodes", "left"):
        assert words in said.getvalue()
    assert ("50/200" if bar else "50 of 200 tasks") in said.getvalue()


@pytest.mark.parametrize(("slots", "words"), [(0, "no slot yet"), (1, "1 slot"), (3, "3 slots")])
def test_before_the_first_result_it_says_how_many_slots_it_has(
    monkeypatch: pytest.MonkeyPatch, slots: int, words: str
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    begun = job(0, 200)
    begun.info = msgspec.structs.replace(begun.info, counts=JobCounts(inputs=200), nodes={}, slots=slots)
    monkeypatch.setattr(Progress, "_info", lambda self: self._job.info)
    show_until("tasks", said, Progress(begun, style="lines", after_s=0.0))
    assert said.getvalue().splitlines()[0] == f"fallow: work: 0 of 200 tasks, 0.0/s, {words}"


def test_a_short_job_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    shown = Progress(job(1, 1), style="bar", after_s=60.0)
    shown.close()
    shown.join(30)
    assert said.getvalue() == ""
