"""`fallow run -- COMMAND`, as whoever has a program runs it over many inputs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pool import DEADLINE_S, Pool, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def test_a_command_over_arguments(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "echo made $1 > made.txt; echo said $1; test $1 != c || { echo bad sky >&2; exit 4; }"
    done = pool.cli("run", "--out", str(out), "--", "sh", "-c", code, "sh", "{}", ":::", "a", "b", "c")
    assert done.returncode == 1
    assert "3 tasks" in done.stdout
    assert "1 failed" in done.stdout
    assert "bad sky" in done.stderr
    assert (out / "0000-a" / "made.txt").read_text() == "made a\n"
    assert (out / "0001-b" / "stdout.txt").read_text() == "said b\n"
    assert (out / "0002-c" / "stderr.txt").read_text() == "bad sky\n"
    assert (out / "0002-c" / "made.txt").exists(), "what a failed command made is kept"
    assert len((out / "summary.csv").read_text().splitlines()) >= 4


def test_a_tool_of_ours_over_files(pool: Pool, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number in range(20):
        (inputs / f"page{number}.txt").write_text("word " * number)
    (inputs / "large.txt").write_text("word " * 200_000)
    tool = tmp_path / "count"
    tool.write_text('#!/bin/sh\nwc -w < "$1" | tr -d \' \' > "$2"\n')
    tool.chmod(0o755)
    out = tmp_path / "out"
    done = pool.cli(
        "run", "--files", "in", "--out", str(out), "--json", "--", "./count", "{}", "{.}.count", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    counts = {path.name: int(path.read_text()) for path in out.glob("*/*.count")}
    assert counts == {**{f"page{number}.count": number for number in range(20)}, "large.count": 200_000}


def test_a_command_of_an_environment(pool: Pool, tmp_path: Path) -> None:
    """Its programs are found by their names, and `python` is its own."""
    out = tmp_path / "out"
    code = "import six; print(six.__version__)"
    done = pool.cli("run", "--pip", "six==1.16", "--out", str(out), "--", "python", "-c", code, ":::", "a")
    assert done.returncode == 0, done.stderr
    assert (out / "0000-a" / "stdout.txt").read_text() == "1.16.0\n"


def test_an_interrupted_command_keeps_what_was_made(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["run", "--name", "naps", "--out", str(out), "--", "sh", "-c", "echo $0 > made; sleep $0", "{}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fallow.cli.main", *words, ":::", "0", "100"],
        env=pool.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for("the first output", (out / "0000-0" / "stderr.txt").exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "interrupted; cancelled naps" in said
    assert "what 1 task made is in" in said
    assert (out / "0000-0" / "made").read_text() == "0\n"
    assert len((out / "summary.csv").read_text().splitlines()) == 2
    (job,) = (job for job in json.loads(pool.cli("jobs", "--json").stdout) if job["name"] == "naps")
    assert job["state"] == "cancelled"


def test_a_script_without_standard_streams_uses_the_pool(pool: Pool, tmp_path: Path) -> None:
    """As a daemon starts it: the first sockets would have their numbers."""
    found = tmp_path / "found.txt"
    script = tmp_path / "daemon.py"
    script.write_text(
        "import fallow\napp = fallow.App('daemon')\n"
        "@app.function()\ndef loud(x):\n    print('loud', x)\n    return x\n"
        f"open({str(found)!r}, 'w').write(str(sum(loud.map(range(100)))))\n"
    )
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, str(script)]
    assert subprocess.run(words, env=pool.env, timeout=DEADLINE_S, check=False).returncode == 0
    assert found.read_text() == "4950"
