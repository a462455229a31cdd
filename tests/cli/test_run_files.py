"""Which part of a file `fallow run FILE.py` runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fallow.cli.arguments import beside, parse_call
from fallow.cli.main import split_command
from fallow.cli.run import RunOptions, choose_function, file_shape, function_options, refuse_own_flags, run_target
from fallow.model.errors import SettingError

APP = "import fallow\napp = fallow.App('a')\n"
ONE = "@app.function()\ndef one(x): return x\n"
TWO = "@app.function(timeout=3)\ndef two(x): return x\n"


@pytest.mark.parametrize(
    ("source", "chosen"),
    [
        ("print(1)", ""),
        ("def helper(): pass\nprint(helper())", ""),
        (APP + ONE, "one"),
        (APP + ONE + TWO + "def main(): pass", "main"),
        (APP + ONE + "for y in one.map([1]): print(y)", ""),
        (APP + ONE + TWO + "print(two.remote(1))", ""),
        (APP + ONE + "if __name__ == '__main__':\n    print(one.remote(1))", ""),
    ],
)
def test_choice(source: str, chosen: str) -> None:
    assert choose_function(file_shape(source)) == chosen


def test_several_functions_need_a_name() -> None:
    with pytest.raises(SettingError, match=r"2 functions \(one, two\)"):
        choose_function(file_shape(APP + ONE + TWO))


def test_a_command_is_taken_away_before_options_are_read() -> None:
    assert split_command(["run", "--out", "d", "--", "wc", "--help", "{}"]) == (
        ["run", "--out", "d"],
        ["wc", "--help", "{}"],
    )
    assert split_command(["jobs", "--", "x"]) == (["jobs", "--", "x"], None)


def test_options_behind_the_file_are_the_functions_or_are_refused_in_words() -> None:
    def score(depth: int, json: bool = False) -> None: ...

    def free(**settings: int) -> None: ...

    refuse_own_flags(score, ["--depth", "3", "--json"], "a.py::score")
    refuse_own_flags(free, ["--retries", "3"], "a.py::free")
    with pytest.raises(
        SettingError, match=r"--retries is an option of .* before the file: fallow run --retries \.\.\. a"
    ):
        refuse_own_flags(score, ["--depth", "3", "--retries=2"], "a.py::score")


def test_what_was_given_changes_the_function_and_nothing_else() -> None:
    options = RunOptions(pip=("attrs",), timeout_s=3.0, retries=0, given=frozenset({"--pip", "--timeout"}))
    settings = function_options(options)
    assert set(settings) == {"timeout", "env"}
    assert settings["timeout"] == 3.0


@pytest.mark.parametrize(
    ("source", "flag", "words"),
    [
        ("print(1)", "--pip", "run as a script"),
        (APP + ONE, "--out", "is for commands"),
        ("def f(): pass", "--cpu", "ordinary"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path: Path, source: str, flag: str, words: str) -> None:
    path = tmp_path / "given-file.py"
    path.write_text(source)
    target = f"{path}::f" if "def f" in source else str(path)
    with pytest.raises(SettingError, match=f"{flag} was given, .*{words}"):
        run_target(target, ["3"], None, RunOptions(given=frozenset({flag})))


def test_a_failure_shows_the_users_frames_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "failing-file.py"
    path.write_text("def inner(): return 1 / 0\ndef main(): inner()\n")
    for target, arguments in ((f"{path}::main", []), (str(path), ["x"])):
        if arguments:
            path.write_text("1 / 0\n")
        assert run_target(target, arguments, None, RunOptions()) == 1
        said = capsys.readouterr().err
        assert said.startswith("Traceback")
        assert said.rstrip().endswith("ZeroDivisionError: division by zero")
        assert {line.split('"')[1] for line in said.splitlines() if line.startswith("  File")} == {str(path)}


def test_an_option_that_there_is_not_is_no_file() -> None:
    with pytest.raises(SettingError, match=r"has no option '--lines'. It has: .*--inputs"):
        run_target("--lines", ["x"], ["echo", "{}"], RunOptions())


class Scaled:
    def __init__(self, factor: float, *, fast: bool = False) -> None: ...

    def predict(self, x: int, *more: int, label: str = "") -> float:
        return x

    def clash(self, factor: int) -> None: ...


def test_what_a_class_is_made_with_stands_beside_what_its_method_takes() -> None:
    makes, call = beside(Scaled, "predict")
    assert makes == ("factor", "fast")
    assert parse_call(call, ["3", "4", "--factor", "2", "--fast"]) == ([3, 4], {"factor": 2.0, "fast": True})
    with pytest.raises(SettingError, match=r"Scaled\.predict: missing a required .*'factor'.* Usage: --x INT .*FLOAT"):
        parse_call(call, ["3"])
    with pytest.raises(SettingError, match=r"Scaled\.predict has no parameter --depth"):
        parse_call(call, ["3", "--depth", "1"])
    with pytest.raises(SettingError, match=r"factor of Scaled\.clash cannot be told from"):
        beside(Scaled, "clash")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("Model", r"is a class: name a method .*::Model\.go or .*::Model\.stop"),
        ("Model.start", "Model has no method 'start' for the pool; it has go, stop"),
        ("Model.go", r"--out was given, which is for commands, but what runs is a method"),
    ],
)
def test_a_method_that_cannot_be_run_is_refused_in_words(tmp_path: Path, target: str, words: str) -> None:
    path = tmp_path / "class-file.py"
    methods = "".join(f"    @fallow.method\n    def {name}(self): ...\n" for name in ("go", "stop"))
    path.write_text(f"{APP}@app.cls()\nclass Model:\n{methods}")
    with pytest.raises(SettingError, match=words):
        run_target(f"{path}::{target}", [], None, RunOptions(given=frozenset({"--out"})))


def test_inputs_that_stand_where_a_python_file_would_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "b.tif").write_bytes(b"a picture")
    path = str(tmp_path / "b.tif")
    given = RunOptions(files=(str(tmp_path / "a.tif"),), given=frozenset({"--files"}))
    with pytest.raises(SettingError, match=r"goes in quotes.*--files '.*/\*'"):
        run_target(path, [], ["./convert", "{}"], given)
    with pytest.raises(SettingError, match=r"Is it a Python file\? Inputs are named: --files .*b.tif"):
        run_target(path, [], ["./convert", "{}"], RunOptions())


def test_files_that_cannot_be_run_are_spoken_of(tmp_path: Path) -> None:
    for name, content, words in (
        ("brackets.py", b"x = (\n", r"brackets.py:1: .* was never closed"),
        ("binary.py", b"\xff\x00", "binary.py: source code"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingError, match=words):
            run_target(str(tmp_path / name), [], None, RunOptions())
    with pytest.raises(SettingError, match="is a folder"):
        run_target(str(tmp_path), [], None, RunOptions())


@pytest.mark.parametrize("name", ["a_module", "not-a-module"])
def test_a_file_that_fails_while_it_is_loaded_shows_its_own_lines_alone(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(f"{APP}{ONE}raise ValueError('of the top')\n")
    done = subprocess.run(
        [sys.executable, "-m", "fallow.cli.main", "run", f"{file}::one", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "FALLOW_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[1].strip() == f'File "{file}", line 5, in <module>'
    assert lines[-1] == "ValueError: of the top"
    assert len(lines) <= 4
