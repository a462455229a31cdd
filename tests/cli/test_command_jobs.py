"""The parts of a command job that need no pool."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fallow.cli.command_jobs import (
    SUMMARY,
    Collector,
    _take,
    command_inputs,
    file_hint,
    find_files,
    folder_name,
    make_plan,
    read_lines,
    safe_path,
    split_arguments,
)
from fallow.cli.run import RunOptions
from fallow.model.errors import SettingError, TaskTimeout
from fallow.worker.command import (
    CommandFailed,
    CommandInput,
    CommandOutcome,
    CommandPlan,
    fill_words,
    run_command,
)


def outcome(number: int = 0, **changes: object) -> CommandOutcome:
    fields = {
        "number": number, "argument": "a", "exit_code": 0, "seconds": 0.1, "stdout": b"", "stderr": b"", "files": (),
    }  # fmt: skip
    return CommandOutcome(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "filled"),
    [
        (["wc", "{}"], ["wc", "in/a.txt"]),
        (["wc", "-w"], ["wc", "-w", "in/a.txt"]),
        (["cp", "{}", "{.}.png"], ["cp", "in/a.txt", "a.png"]),
        (["cp", "{/}", "n={#}"], ["cp", "a.txt", "n=7"]),
    ],
)
def test_placeholders(words: list[str], filled: list[str]) -> None:
    assert fill_words(words, "in/a.txt", 7) == filled


def test_an_argument_that_looks_like_a_placeholder_stays() -> None:
    assert fill_words(["echo", "{}"], "{#}", 7) == ["echo", "{#}"]


def test_arguments_stand_behind_three_colons() -> None:
    assert split_arguments(["a", "-x", ":::", "1", "2"]).arguments == ("1", "2")
    assert split_arguments(["a"]).arguments is None
    with pytest.raises(SettingError, match="no command"):
        split_arguments([":::", "1"])


def test_inputs_come_from_one_source(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo words\n")
    found = list(command_inputs(split_arguments(["x"]), RunOptions(inputs=str(lines))))
    assert [(task.number, task.argument) for _, task in found] == [(0, "one"), (1, "two words")]
    with pytest.raises(SettingError, match="once"):
        command_inputs(split_arguments(["x", ":::", "1"]), RunOptions(inputs=str(lines)))
    with pytest.raises(SettingError, match="no inputs"):
        command_inputs(split_arguments(["x"]), RunOptions())
    with pytest.raises(SettingError, match="cannot read"):
        list(command_inputs(split_arguments(["x"]), RunOptions(inputs=str(tmp_path / "none"))))


def test_files_of_a_folder_or_glob(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    assert [path.name for path in find_files([str(tmp_path)])] == ["a.txt", "b.txt"]
    assert [path.name for path in find_files([str(tmp_path / "b*"), str(tmp_path)])] == ["b.txt", "a.txt"]
    with pytest.raises(SettingError, match="no files match"):
        find_files([str(tmp_path / "*.png")])
    tasks = list(command_inputs(split_arguments(["x"]), RunOptions(files=(str(tmp_path),))))
    assert tasks[0] == (str(tmp_path / "a.txt"), CommandInput(0, "a.txt", b"a.txt"))
    (tmp_path / "a[b].txt").write_text("")
    assert find_files([str(tmp_path / "a[b].txt")]) == [tmp_path / "a[b].txt"]
    with pytest.raises(SettingError, match=r"no file in the folder .*sub/\*\*"):
        find_files([str(tmp_path / "sub")])


def test_a_program_that_lies_here_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    with pytest.raises(SettingError, match="chmod"):
        make_plan(split_arguments(["./tool"]), RunOptions())
    tool.chmod(0o755)
    (tmp_path / "data.csv").write_text("1")
    plan = make_plan(split_arguments(["./tool", "--table", "data.csv", "{}"]), RunOptions())
    assert plan.words == ("./tool", "--table", "data.csv", "{}")
    assert set(plan.shipped) == {"tool", "data.csv"}
    assert plan.executable == ("tool",)
    with pytest.raises(SettingError, match="no program"):
        make_plan(split_arguments(["./missing"]), RunOptions())


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "", "a\x00b"])
def test_names_from_other_machines_stay_in_their_folder(name: str) -> None:
    assert safe_path(name) is None


def test_folder_names_are_readable_and_safe() -> None:
    assert folder_name(7, "scans/alpha beta.tif") == "0007-alpha_beta"
    assert folder_name(1, "../..") == "0001"


def test_outputs_are_written_with_a_summary(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "out")
    collector.outcome(outcome(0, files=(("d/x.bin", 0o755, b"x"), ("../evil", 0o644, b"e")), stdout=b"hi"), "a")
    collector.outcome(outcome(1, files=(("stdout.txt", 0o644, b"own"),), stdout=b"ours"), "a")
    collector.lost(2, "c", "worker lost")
    collector.close()
    assert (tmp_path / "out/0000-a/d/x.bin").read_bytes() == b"x"
    assert os.access(tmp_path / "out/0000-a/d/x.bin", os.X_OK)
    assert (tmp_path / "out/0000-a/stdout.txt").read_bytes() == b"hi"
    assert (tmp_path / "out/0001-a/stdout.txt").read_bytes() == b"own"
    assert (tmp_path / "out/0001-a/stdout.fallow.txt").read_bytes() == b"ours"
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out/evil").exists()
    with open(tmp_path / "out" / SUMMARY, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert "unsafe name" in rows[0]["error"]
    assert (collector.done, collector.failed) == (3, 2)


def test_a_command_runs_in_a_fresh_folder_and_what_it_makes_comes_back() -> None:
    code = "import sys; t=open(sys.argv[1]).read(); open('up.txt','w').write(t.upper()); print('done')"
    plan = CommandPlan(words=(sys.executable, "-c", code, "{}"))
    made = run_command(CommandInput(3, "in.txt", b"abc"), plan)
    assert made.files[0][0] == "up.txt"
    assert made.files[0][2] == b"ABC"
    assert len(made.files) == 1, "the input itself is not an output"
    assert made.stdout == b"done\n"
    assert made.exit_code == 0


def test_a_changed_input_is_an_output() -> None:
    plan = CommandPlan(words=("sh", "-c", "echo more >> in.txt", "{}"))
    made = run_command(CommandInput(0, "in.txt", b"abc\n"), plan)
    assert made.files[0][2] == b"abc\nmore\n"


def test_a_failed_command_keeps_what_it_made_and_says_its_last_words() -> None:
    plan = CommandPlan(words=("sh", "-c", "echo part > part.txt; echo 'no such sky' >&2; exit 3", "{}"))
    with pytest.raises(CommandFailed, match=r"exit code 3:\nno such sky") as caught:
        run_command(CommandInput(0, "x"), plan)
    assert caught.value.outcome.files[0][:1] == ("part.txt",)
    assert caught.value.outcome.exit_code == 3


def test_a_missing_program_is_said() -> None:
    with pytest.raises(CommandFailed, match="no such program on this node"):
        run_command(CommandInput(0, "x"), CommandPlan(words=("no-such-program-here",)))


def test_a_tool_that_the_node_cannot_run_says_why() -> None:
    for content, words in (
        (b"#!/no/such/interpreter\n", r"code 127:\n./tool: its first line names '/no/such/interpreter'"),
        (b"echo without a first line\n", r"code 126:\n./tool: this node cannot run it.*#!/bin/sh"),
    ):
        plan = CommandPlan(words=("./tool",), shipped={"tool": content}, executable=("tool",))
        with pytest.raises(CommandFailed, match=words):
            run_command(CommandInput(0, "x"), plan)


def test_programs_of_the_environment_come_first(tmp_path: Path) -> None:
    for words in (("python",), ("sh", "-c", 'exec python "$0"')):
        plan = CommandPlan(words=(*words, "{}"))
        made = run_command(CommandInput(0, "in.py", b"import sys; print(sys.prefix, end='')"), plan)
        assert made.stdout.decode() == sys.prefix


def test_names_of_every_kind_go_in_and_come_out(tmp_path: Path) -> None:
    names = ["-dash.txt", "two words.txt", "größe.txt", "new\nline", os.fsdecode(b"latin-\xe9.txt")]
    collector = Collector(tmp_path / "out")
    for number, name in enumerate(names):
        make = (
            'mkdir "./-sub dir"; cat "$1" > "./-sub dir/$3"; cat "$2" > stderr.txt; mkdir stdout.txt; '
            ": > stdout.txt/x; chmod 0 stdout.txt/x; ln -s /etc/hostname link"
        )
        plan = CommandPlan(words=("sh", "-c", make, "sh", "{}", "{/}", name))
        made = run_command(CommandInput(number, name, b"content"), plan)
        collector.outcome(made, f"in/{name}")
        folder = tmp_path / "out" / folder_name(number, name)
        assert (folder / "-sub dir" / name).read_bytes() == b"content"
        assert (folder / "stderr.txt").read_bytes() == b"content"
        assert {entry.name for entry in folder.iterdir()} == {
            "-sub dir", "stderr.txt", "stderr.fallow.txt", "stdout.txt", "stdout.fallow.txt",
        }  # fmt: skip
    collector.close()
    with open(tmp_path / "out" / SUMMARY, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["argument"] for row in rows] == [f"in/{name}" for name in names]
    assert {row["error"] for row in rows} == {""}


def test_lines_of_every_kind_are_arguments(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"\xef\xbb\xbfone\r\n\r\ncaf\xe9\nlast")
    assert [os.fsencode(line) for line in read_lines(str(lines))] == [b"one", b"caf\xe9", b"last"]
    lines.write_bytes(b"")
    assert list(read_lines(str(lines))) == []


def test_a_command_killed_by_a_signal_says_which() -> None:
    with pytest.raises(CommandFailed, match="SIGSEGV"):
        run_command(CommandInput(0, "x"), CommandPlan(words=("sh", "-c", "kill -SEGV $$")))


def test_arguments_that_name_files_of_this_machine_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    file = str(tmp_path / "a.txt")
    line = split_arguments(["wc", "{}", ":::", "word", file])
    assert "--files" in file_hint(line, RunOptions())
    assert file_hint(line, RunOptions(ship=(Path(file),))) == ""
    assert file_hint(split_arguments(["wc", "{}", ":::", "word"]), RunOptions()) == ""


def test_the_last_words_of_a_command_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collector = Collector(tmp_path)
    _take(CommandFailed("./tool a ended with exit code 1:\n\x1b]0;mine\x07gone\x1b[2J", outcome()), collector, {0: "a"})
    _take(TaskTimeout("task 1 ran longer than its time limit of 1 s", index=1), collector, {1: "b"})
    collector.close()
    assert capsys.readouterr().err == (
        "fallow: task 0 (a): ./tool a ended with exit code 1:\n\ufffd]0;mine\ufffdgone\ufffd[2J\n"
        "fallow: task 1 (b): ran longer than its time limit of 1 s\n"
    )


def test_a_standard_input_that_is_closed_is_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "sh",
            "-c",
            'exec "$@" <&-',
            "sh",
            sys.executable,
            "-m",
            "fallow.cli.main",
            "run",
            "--inputs",
            "-",
            "--",
            "wc",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "FALLOW_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 1
    assert "cannot read the inputs '-': standard input is closed." in done.stderr
    assert "Traceback" not in done.stderr


def test_the_summary_is_in_the_order_of_the_tasks_however_they_end(tmp_path: Path) -> None:
    def numbers() -> list[str]:
        with open(tmp_path / SUMMARY, newline="") as file:
            return [row["number"] for row in csv.DictReader(file)]

    collector = Collector(tmp_path)
    collector.outcome(outcome(2), "a")
    assert numbers() == []
    collector.outcome(outcome(0), "a")
    collector.lost(1, "b", "the node was lost")
    assert numbers() == ["0", "1", "2"]
    collector.outcome(outcome(11), "a")
    collector.outcome(outcome(9), "a")
    collector.close()
    assert numbers() == ["0", "1", "2", "9", "11"], "what an interrupted job leaves is there too"
    assert (collector.done, collector.failed) == (5, 1)
