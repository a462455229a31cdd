"""A step of a run that takes too long is ended, and the report says what every process did."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

from tests.chaos.stuck import limited
from tests.pool import MARK


def test_a_step_that_takes_too_long_is_ended_and_told(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    code = "import time\nprint(1, flush=True)\ndef waits_for_ever():\n    time.sleep(1000)\nwaits_for_ever()"
    waiting = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, text=True
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline()
    wrong: list[str] = []
    ended = threading.Event()
    try:
        with limited("the test", 0.05, tmp_path, mark, wrong, ended.set):
            assert ended.wait(60)
    finally:
        waiting.kill()
        waiting.wait()
        waiting.stdout.close()
    assert len(wrong) == 1
    assert "the test took more than 0.05 s" in wrong[0]
    said = (tmp_path / "stuck-the-test.txt").read_text()
    assert "test_a_step_that_takes_too_long" in said, "this process's own stacks"
    assert str(waiting.pid) in said
    assert "waits_for_ever" in said or "no py-spy" in said


def test_a_step_in_time_says_nothing(tmp_path: Path) -> None:
    wrong: list[str] = []
    with limited("the test", 60.0, tmp_path, "no such mark", wrong, lambda: wrong.append("ended")):
        pass
    assert wrong == []
    assert list(tmp_path.iterdir()) == []
