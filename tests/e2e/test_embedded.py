"""The pool of one script: there without being asked for, gone with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import uuid
from pathlib import Path

import pytest

from tests.pool import DEADLINE_S, MARK, client_env, marked_processes, wait_for, wait_for_none

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

SCRIPT = """
    import sys, time
    import fallow
    app = fallow.App("square")

    @app.function()
    def square(x):
        return x * x

    @app.function()
    def nap(seconds):
        time.sleep(seconds)

    print(sum(square.map(range(10_000))), flush=True)
    if len(sys.argv) > 1:
        nap.remote(float(sys.argv[1]))
"""


class Script:
    """A script of a user who runs no pool. Temporary files go to a folder of its own, to see what is left."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        # Not below pytest's folder, whose paths may be too long for sockets.
        self.temporary = Path(tempfile.mkdtemp(prefix="fw"))
        path = folder / "script.py"
        path.write_text(textwrap.dedent(SCRIPT))
        env = client_env(folder / "home", TMPDIR=str(self.temporary), **{MARK: self.mark})
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        for process in marked_processes(self.mark):
            process.kill()
        self.process.communicate(timeout=DEADLINE_S)
        subprocess.run(["rm", "-rf", str(self.temporary)], check=True)


EXPECTED = str(sum(x * x for x in range(10_000)))


def test_a_script_starts_its_own_pool_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    script = Script(tmp_path)
    try:
        out, errors = script.process.communicate(timeout=DEADLINE_S)
        assert script.process.returncode == 0, errors
        assert out.strip() == EXPECTED
        assert "started one of its own" in errors
        wait_for_none(script.mark)
        wait_for("temporary files to go", lambda: not os.listdir(script.temporary), 30)
    finally:
        script.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_script_ends_the_pool_ends_too(tmp_path: Path, number: signal.Signals) -> None:
    script = Script(tmp_path, "600")
    try:
        assert script.first_line().strip() == EXPECTED
        script.process.send_signal(number)
        script.process.wait(DEADLINE_S)
        assert script.process.returncode != 0
        wait_for_none(script.mark)
    finally:
        script.close()


def test_two_scripts_at_once_do_not_meet(tmp_path: Path) -> None:
    scripts = []
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            scripts.append(Script(tmp_path / name))
        for script in scripts:
            out, errors = script.process.communicate(timeout=DEADLINE_S)
            assert out.strip() == EXPECTED, errors
    finally:
        for script in scripts:
            script.close()
