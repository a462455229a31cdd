"""What the program says when it is used wrongly: sentences, exit codes, no tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fallow.cli.main import app
from tests.pool import client_env


def commands(group: Any, *words: str) -> list[list[str]]:
    found = []
    for name, command in group.commands.items():
        path = [*words, name]
        found += commands(command, *path) if hasattr(command, "commands") else [path]
    return found


COMMANDS = commands(get_command(app))


def fallow(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fallow.cli.main", *arguments],
        env=client_env(home, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "Example" in done.stdout
    assert " ".join(["fallow", *command]) in done.stdout.split("Example")[1]


@pytest.mark.parametrize(
    "command", [["jobs"], ["nodes"], ["status"], ["logs", "x"], ["cancel", "x"], ["top", "--once"]]
)
def test_without_a_pool_it_says_how_to_get_one(tmp_path: Path, command: list[str]) -> None:
    done = fallow(tmp_path, *command)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("fallow: no pool is known here. Start one with `fallow up`")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["jobs", "--limit", "x"], "--limit", 2),
        (["nonsense"], "No such command", 2),
        (["join", "127.0.0.1:4222"], "has no token", 1),
        (["join", "token@somewhere"], "is not HOST:PORT", 1),
        (["connect", "token@127.0.0.1:1"], "no pool answers at 127.0.0.1:1", 1),
        (["run"], "nothing to run", 1),
        (["run", "none.py"], "there is no file 'none.py'", 1),
        (["run", "--", "no/such/tool", ":::", "1"], "there is no program", 1),
        (["up", "--listen", "192.0.2.7"], "cannot listen on '192.0.2.7'", 1),
        (["up", "--nats", "localhost:4222"], "has no token", 1),
    ],
)
def test_mistakes_are_answered_in_a_sentence(tmp_path: Path, arguments: list[str], words: str, code: int) -> None:
    done = fallow(tmp_path, *arguments)
    assert words in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_file_with_a_syntax_error_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("x = (\n")
    done = fallow(tmp_path, "run", str(path))
    assert done.returncode == 1
    assert "bad.py:1" in done.stderr


def test_a_plain_script_runs_as_python_would_run_it(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text("import sys, json\nprint(json.dumps([__name__, sys.argv[1:]]))\nsys.exit(5)\n")
    done = fallow(tmp_path, "run", str(path), "--depth", "3", "--", "x")
    assert json.loads(done.stdout) == ["__main__", ["--depth", "3", "--", "x"]]
    assert done.returncode == 5


def test_connect_remembers_nothing_that_does_not_answer(tmp_path: Path) -> None:
    assert fallow(tmp_path, "connect", "secret@127.0.0.1:1").returncode == 1
    assert not (tmp_path / "connect.json").exists()
    assert "No pool is remembered" in fallow(tmp_path, "connect").stdout
    assert "No pool was remembered" in fallow(tmp_path, "disconnect").stdout


def test_version(tmp_path: Path) -> None:
    assert fallow(tmp_path, "--version").stdout.startswith("fallow 0.")


@pytest.mark.skipif(sys.platform == "win32", reason="a path of POSIX")
@pytest.mark.parametrize("command", [["up"], ["join", "--from", "ADDRESS"], ["connect", "ADDRESS"]])
def test_a_home_that_cannot_be_had_is_spoken_of(tmp_path: Path, command: list[str]) -> None:
    address = tmp_path / "pool-address"
    address.write_text("secret@127.0.0.1:1")
    address.chmod(0o644)
    words = [str(address) if word == "ADDRESS" and command[0] == "join" else word for word in command]
    words = ["secret@127.0.0.1:1" if word == "ADDRESS" else word for word in words]
    done = fallow(Path("/dev/null/home"), *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    if command[0] != "connect":  # which asks the pool first
        assert "/dev/null/home cannot be used: Not a directory." in done.stderr
        assert "--home or FALLOW_HOME" in done.stderr
    if command[0] == "join":
        assert f"others can read the pool's token in {address}: chmod 600" in done.stderr
