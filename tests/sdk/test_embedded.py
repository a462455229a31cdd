"""Scripts without a pool start one that is theirs alone, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fallow
from tests.pool import MARK, wait_for_none
from tests.sdk.conftest import Script

pytestmark = pytest.mark.slow

SQUARE = """
import fallow
app = fallow.App("square")

@app.function(timeout=60, retries=2)
def square(x): return x * x
"""


def test_the_first_script(script: Script) -> None:
    done = script(SQUARE + "print(sum(square.map(range(100_000))))\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{sum(x * x for x in range(100_000))}\n"
    assert done.stderr.count("\n") == 1
    assert "started one of its own" in done.stderr


def test_a_script_without_standard_streams(script: Script, tmp_path: Path) -> None:
    """As a daemon starts it."""
    source = """
        import os, subprocess, sys
        if len(sys.argv) < 2:
            words = [sys.executable, __file__, "again"]
            sys.exit(subprocess.call(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]))
        import fallow
        app = fallow.App("daemon")

        @app.function()
        def loud(x):
            print("loud", x)
            return x

        with open("found.txt", "w") as file:
            file.write(repr((sys.stdin, sys.stdout, sys.stderr, list(loud.map(range(5))))))
        """
    done = script(source)
    assert (tmp_path / "found.txt").read_text() == "(None, None, None, [0, 1, 2, 3, 4])"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_raised_on_purpose_shows_the_users_lines_alone(script: Script) -> None:
    source = """
        import fallow

        app = fallow.App("first")

        @app.function()
        def square(x):
            return x * x

        print(square.remote(3))
        """
    done = script(source, FALLOW_URL="nonsense")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "script.py" in lines[1]
    assert "FALLOW_URL: 'nonsense' has no token" in lines[-1]
    assert str(Path(fallow.__file__).parent) not in done.stderr


def test_detached_jobs_are_refused_in_words(script: Script) -> None:
    done = script(
        SQUARE
        + """
try:
    square.map([1], detached=True)
except fallow.DetachedRefused as error:
    print("refused:", error)
print(square.spawn(3).get())
"""
    )
    assert "refused: a detached job outlives its script" in done.stdout, done.stderr
    assert "`fallow up`" in done.stdout
    assert done.stdout.endswith("9\n")


def test_local_modules_travel_along(script: Script, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import deeper\ndef double(x):\n    return deeper.TWO * x\n")
    (tmp_path / "deeper.py").write_text("TWO = 2\n")
    (tmp_path / "lazy.py").write_text("def triple(x):\n    return 3 * x\n")
    done = script(
        """
        import fallow, helper
        app = fallow.App("x")

        @app.function
        def f(x):
            import lazy
            return helper.double(x) + lazy.triple(x)

        print(list(f.map(range(3))), f.remote(10))
        """
    )
    assert done.stdout == "[0, 5, 10] 50\n", done.stderr


def test_two_scripts_do_not_meet(tmp_path: Path) -> None:
    mark = f"two-{os.getpid()}-{tmp_path.name}"
    source = SQUARE + "print([info.name for info in fallow.jobs()], list(square.map(range(3))))\n"
    (tmp_path / "script.py").write_text(source)
    env = {name: value for name, value in os.environ.items() if not name.startswith("FALLOW_")}
    env |= {"FALLOW_HOME": str(tmp_path / "home"), "FALLOW_SLOTS": "1", MARK: mark}
    both = [
        subprocess.Popen([sys.executable, "script.py"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=110)
        assert out == "[] [0, 1, 4]\n"
    wait_for_none(mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_script_that_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    mark = f"stop-{os.getpid()}-{number}"
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import fallow, itertools, time
            app = fallow.App("x")

            @app.function
            def slow(x):
                if x > 5:
                    time.sleep(1000)
                return x

            for y in slow.map(itertools.count()):
                print(y, flush=True)
            """
        )
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("FALLOW_")}
    env |= {"FALLOW_HOME": str(tmp_path / "home"), "FALLOW_SLOTS": "2", MARK: mark}
    process = subprocess.Popen(
        [sys.executable, "script.py"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(6)] == [f"{n}\n" for n in range(6)]
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    wait_for_none(mark)
    if number == signal.SIGINT:
        assert process.returncode in (-signal.SIGINT, 130)
        assert "interrupted" in said
        assert "Traceback" not in said


def test_executors_finish_what_was_submitted_before_the_script_ends(script: Script, tmp_path: Path) -> None:
    done = script(
        f"""
        import fallow, pathlib
        executor = fallow.Executor()
        for n in range(50):
            executor.submit(pathlib.Path.touch, pathlib.Path({str(tmp_path)!r}, f"t{{n}}"))
        """
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("t*"))) == 50


def test_joblib_and_scikit_style_work_run_unchanged(script: Script) -> None:
    pytest.importorskip("joblib")
    pytest.importorskip("numpy")
    done = script(
        """
        import fallow, joblib, os
        import numpy as np

        def work(a, n, scale=1):
            inner = joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-k) for k in range(2))
            return float(a[n]) * scale + sum(inner), os.getpid(), a.flags.writeable

        table = np.arange(300_000, dtype="f8")
        with joblib.parallel_config("fallow"):
            out = joblib.Parallel()(joblib.delayed(work)(table, n, scale=2) for n in range(20))
            print(joblib.effective_n_jobs())
        assert [value for value, _, _ in out] == [2.0 * n + 1 for n in range(20)], out
        assert os.getpid() not in {pid for _, pid, _ in out}
        assert not any(writeable for _, _, writeable in out)
        generator = joblib.Parallel(n_jobs=2, backend="fallow", return_as="generator")(
            joblib.delayed(pow)(n, 2) for n in range(100))
        assert list(generator) == [n * n for n in range(100)]

        def bad(n):
            raise KeyError(n)
        try:
            joblib.Parallel(n_jobs=2, backend="fallow")(joblib.delayed(bad)(n) for n in range(5))
        except KeyError as error:
            print("raised", type(error).__name__)

        def threads():
            return os.environ["OMP_NUM_THREADS"]
        with joblib.parallel_config("fallow", inner_max_num_threads=2):
            print(joblib.Parallel(n_jobs=2)(joblib.delayed(threads)() for _ in range(2)))
        """
    )
    assert done.stdout == "2\nraised KeyError\n['2', '2']\n", done.stderr


def test_the_pool_dying_under_a_script_is_said(script: Script) -> None:
    done = script(
        """
        import fallow, os, signal, time
        app = fallow.App("x")

        @app.function
        def f(x): return x

        print(f.remote(1))
        from fallow.sdk.client import get_client
        get_client().found.embedded.process.send_signal(signal.SIGKILL)
        try:
            print(list(f.map([1])))
        except fallow.PoolEnded as error:
            print("ended:", error)
        """
    )
    assert done.stdout.startswith("1\nended: the script's own pool ended"), done.stderr


def test_flat_memory_over_an_infinite_input(script: Script) -> None:
    done = script(
        """
        import fallow, itertools, resource
        app = fallow.App("x")

        @app.function
        def f(x): return x

        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

        results = f.map(itertools.count())
        for _ in itertools.islice(results, 200_000): pass
        before = peak()
        for _ in itertools.islice(results, 1_000_000): pass
        print(peak() - before)
        results.close()
        """
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60


def test_a_fork_of_the_script_uses_the_same_pool(script: Script) -> None:
    done = script(
        SQUARE
        + """
import os
print(square.remote(2), flush=True)
if os.fork() == 0:
    print(square.remote(3), flush=True)
    os._exit(0)
os.wait()
print(square.remote(4))
"""
    )
    assert done.stdout == "4\n9\n16\n", done.stderr
