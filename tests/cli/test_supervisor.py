"""The supervisor with real children: started again when they die, ended in order, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import psutil
import pytest

from fallow.cli.processes import read_tail
from tests.pool import MARK, marked_processes, wait_for, wait_for_none

# A process of its own, since the supervisor takes the signals of the process that it runs in.
PROGRAM = """
    import os, sys, time
    from pathlib import Path
    from fallow.cli.processes import fork_child
    from fallow.cli.supervisor import Service, ServiceFailed, Supervisor

    folder = Path(sys.argv[1])
    kind = sys.argv[2]
    lifeline = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    supervisor = Supervisor(lambda line: print(line, flush=True), lifeline=lifeline)

    def steady(ready):
        with open(folder / "started", "a") as file:
            file.write(f"{os.getpid()}\\n")
        ready()
        time.sleep(1000)
        return 0

    def failing(ready):
        print("the words of the failure", file=sys.stderr)
        return 3

    def stubborn(ready):
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return steady(ready)

    body = {"steady": steady, "failing": failing, "stubborn": stubborn}[kind]

    def start():
        if (folder / "full").exists():
            raise OSError(28, "No space left on device")
        return fork_child("part", body, log=folder / "part.log", close=supervisor.child_fds())

    try:
        supervisor.add(Service("part", start, grace_s=0.3))
        supervisor.run()
        print("told to end", flush=True)
    except ServiceFailed as error:
        print("failed:", error, flush=True)
    finally:
        supervisor.end(["part"])
        supervisor.close()
"""


class Run:
    def __init__(self, folder: Path, kind: str, lifeline: int = -1) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.output = folder / "output"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), kind]
                + ([str(lifeline)] if lifeline >= 0 else []),
                env={**os.environ, MARK: self.mark},
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lifeline,) if lifeline >= 0 else (),
                start_new_session=True,
            )

    def started(self) -> list[int]:
        try:
            return [int(line) for line in (self.folder / "started").read_text().split()]
        except FileNotFoundError:
            return []

    def said(self) -> str:
        return self.output.read_text()

    def finish(self) -> None:
        for process in marked_processes(self.mark):
            process.kill()
        self.process.wait(10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_a_killed_child_starts_again_and_ends_with_the_supervisor(folder: Path) -> None:
    run = Run(folder, "steady")
    try:
        first = wait_for("the first start", lambda: run.started())[0]
        os.kill(first, signal.SIGKILL)
        second = wait_for("the second start", lambda: len(run.started()) == 2 and run.started()[1])
        wait_for("words", lambda: "the part ended by SIGKILL; it starts again" in run.said())
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0
        assert "told to end" in run.said()
        assert not psutil.pid_exists(second)
    finally:
        run.finish()


def test_last_words_are_of_this_start_and_not_of_an_earlier_one(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_text("fallow: words of the last time\n")
    begin = log.stat().st_size
    with log.open("a") as file:
        file.write("words of now\n")
    assert read_tail(log, 3, begin) == "words of now"
    assert read_tail(log, 3).count("\n") == 1


def test_a_child_that_fails_while_starting_ends_everything_in_its_own_words(folder: Path) -> None:
    run = Run(folder, "failing")
    try:
        run.process.wait(30)
        assert "the part ended with exit code 3 while starting: the words of the failure" in run.said()
    finally:
        run.finish()


def test_a_child_that_cannot_be_started_again_is_tried_on(folder: Path) -> None:
    """As while the disk is full: the supervisor, and whatever else runs, go on."""
    run = Run(folder, "steady")
    try:
        first = wait_for("the first start", lambda: run.started())[0]
        (folder / "full").touch()
        os.kill(first, signal.SIGKILL)
        wait_for("the reason", lambda: "the part cannot be started: [Errno 28] No space left" in run.said())
        (folder / "full").unlink()
        wait_for("the second start", lambda: len(run.started()) == 2)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0
    finally:
        run.finish()


def test_a_child_that_cannot_be_started_at_first_is_a_sentence(folder: Path) -> None:
    (folder / "full").touch()
    run = Run(folder, "steady")
    try:
        assert run.process.wait(60) == 0
        assert run.said().strip() == "failed: the part cannot be started: [Errno 28] No space left on device."
    finally:
        run.finish()


def test_a_stubborn_child_is_killed_after_its_grace(folder: Path) -> None:
    run = Run(folder, "stubborn")
    try:
        wait_for("the start", lambda: run.started())
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(30) == 0
        wait_for_none(run.mark)
    finally:
        run.finish()


def test_children_end_when_the_supervisor_is_killed(folder: Path) -> None:
    run = Run(folder, "stubborn")
    try:
        wait_for("the start", lambda: run.started())
        run.process.kill()
        run.process.wait(10)
        wait_for_none(run.mark)
    finally:
        run.finish()


def test_the_end_of_the_lifeline_ends_everything(folder: Path) -> None:
    read_fd, write_fd = os.pipe()
    run = Run(folder, "steady", lifeline=read_fd)
    os.close(read_fd)
    try:
        wait_for("the start", lambda: run.started())
        os.close(write_fd)
        assert run.process.wait(30) == 0
        wait_for_none(run.mark)
    finally:
        run.finish()
