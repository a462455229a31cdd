"""What a script says, and the exit code that it leaves, when Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fallow.model.errors import RemoteError
from fallow.sdk.failures import task_exception
from fallow.wire.page import Failure
from tests.sdk.test_embedded import MARK, wait_for_none

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

BEGIN = """
    import atexit, fallow, os, signal, sys
    app = fallow.App("x")

    @app.function
    def same(x):
        return x

    def press():
        os.kill(os.getpid(), signal.SIGINT)
"""


def run(folder: Path, code: str, begin: str = BEGIN) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(textwrap.dedent(begin) + textwrap.dedent(code))
    env = {name: value for name, value in os.environ.items() if not name.startswith("FALLOW_")}
    env |= {"FALLOW_HOME": str(folder / "home"), "FALLOW_SLOTS": "1", MARK: str(folder)}
    command = [sys.executable, "script.py"]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=110)


def test_while_our_own_modules_are_loaded_for_the_first_time(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "fallow.sdk.submit":
                    press()

        sys.meta_path.insert(0, Finder())
        same.map([1])
        """,
    )
    assert done.stderr == "fallow: interrupted.\n"
    assert done.returncode == -signal.SIGINT


def test_while_fallow_itself_is_imported(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import os, signal, sys

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "fallow.sdk.joblib_hook":
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Finder())
        import fallow
        """,
        begin="",
    )
    assert done.stderr == "fallow: interrupted.\n"
    assert done.returncode == -signal.SIGINT


@pytest.mark.slow
def test_a_pool_whose_script_has_gone_ends_without_a_word(tmp_path: Path) -> None:
    ready, ready_child = os.pipe()
    lifeline_child, lifeline = os.pipe()
    os.close(ready)
    os.close(lifeline)
    try:
        fds = ("--ready-fd", str(ready_child), "--lifeline-fd", str(lifeline_child))
        done = subprocess.run(
            [sys.executable, "-m", "fallow.cli.up", "--embedded", "--slots", "1", *fds],
            env=os.environ | {"FALLOW_HOME": str(tmp_path), MARK: str(tmp_path)},
            pass_fds=(ready_child, lifeline_child),
            capture_output=True,
            text=True,
            timeout=100,
        )
    finally:
        os.close(ready_child)
        os.close(lifeline_child)
    assert (done.returncode, done.stderr) == (0, "")
    wait_for_none(str(tmp_path))


def test_before_fallow_does_anything_it_is_pythons_own(tmp_path: Path) -> None:
    done = run(tmp_path, "press()\n")
    assert "fallow:" not in done.stderr
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert done.returncode == -signal.SIGINT


@pytest.mark.slow
def test_pressed_twice_it_waits_for_nothing_and_says_one_line(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        results = iter(same.map(range(10)))
        next(results)

        # Evaluated while the script ends, as each named tuple is that an import brings: Python forgets the Ctrl-C.
        atexit.register(lambda: exec("pass"))

        from fallow.sdk import client
        disconnect = client.disconnect

        def again():
            press()
            disconnect()

        client.disconnect = again
        press()
        """,
    )
    lines = done.stderr.splitlines()
    assert lines[0].startswith("fallow: no pool is running"), done.stderr
    assert [line.split(" (")[0] for line in lines[1:]] == ["fallow: interrupted; cancelled same"], done.stderr
    assert done.returncode == -signal.SIGINT
    wait_for_none(str(tmp_path))


def test_an_interrupt_that_a_task_raised_is_no_ctrl_c() -> None:
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):
        failure = Failure("raised", kind.__name__, "3", "Traceback ...", pickle.dumps(kind(3)))
        error = task_exception(failure, 7, "f")
        assert isinstance(error, RemoteError)
        assert str(error) == f"{kind.__name__}: 3"
