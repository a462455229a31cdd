"""When progress shows, and what it says."""

from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from fallow.model.ids import JobId
from fallow.model.job import JobCounts, JobInfo, JobKind
from fallow.sdk import progress
from fallow.sdk.output import label
from fallow.sdk.progress import BAR_AFTER_S, LINES_AFTER_S, Progress, duration, wanted


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


@pytest.mark.parametrize("bar", [False, True])
def test_what_it_says(monkeypatch: pytest.MonkeyPatch, bar: bool) -> None:
    said = Terminal() if bar else io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(progress, "LINES_EVERY_S", (0.01,))
    monkeypatch.setattr(Progress, "_info", lambda self: self._job.info)
    monkeypatch.setenv("COLUMNS", "120")
    shown = Progress(job(50, 200), style="bar" if bar else "lines", after_s=0.0)
    deadline = threading.Event()
    for _ in range(3000):
        if "2 nodes" in said.getvalue():
            break
        deadline.wait(0.01)
    shown.close()
    shown.join(30)
    for words in ("work", "2 failed", "1 run again", "2 nodes", "left"):
        assert words in said.getvalue()
    assert ("50/200" if bar else "50 of 200 tasks") in said.getvalue()


def test_a_short_job_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    shown = Progress(job(1, 1), style="bar", after_s=60.0)
    shown.close()
    shown.join(30)
    assert said.getvalue() == ""
