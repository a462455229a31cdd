"""`fallow run -- ./tool {} ::: a b c`: one command over many inputs, what it makes collected into a folder."""

from __future__ import annotations

import csv
import glob
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from msgspec import Struct

from fallow.cli.run import RunOptions
from fallow.cli.show import counted, print_json
from fallow.core.terminal import harmless
from fallow.model.errors import SettingError, TaskError
from fallow.worker.command import CommandFailed, CommandInput, CommandOutcome, CommandPlan, run_command

SMALL_FILE_BYTES = 256 * 1024
"""Input files up to this size travel inside the task; larger ones are shipped through the blob store."""
SUMMARY = "summary.csv"
_SUMMARY_COLUMNS = ("number", "argument", "exit_code", "seconds", "host", "folder", "error")


class CommandLine(Struct, frozen=True):
    """The command and the inputs that stand behind ':::'."""

    words: tuple[str, ...]
    arguments: tuple[str, ...] | None


def split_arguments(tail: Sequence[str]) -> CommandLine:
    """Split `./tool {} ::: a b c`. Raises SettingError where there is no command."""
    words = list(tail)
    arguments: tuple[str, ...] | None = None
    if ":::" in words:
        at = words.index(":::")
        words, arguments = words[:at], tuple(words[at + 1 :])
    if not words:
        raise SettingError("no command: it stands behind --, as in fallow run -- ./tool {} ::: a b c")
    return CommandLine(tuple(words), arguments)


# ---------------------------------------------------------------- inputs


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that folders (not their sub-folders) and globs name, each once, in order. Raises SettingError."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
            if not matches:
                raise SettingError(
                    f"there is no file in the folder {pattern!r}. Those of its sub-folders too are '{path}/**'."
                )
        elif path.is_file():  # whatever its name has in common with a pattern
            matches = [path]
        else:
            matches = [Path(item) for item in sorted(glob.glob(pattern, recursive=True)) if Path(item).is_file()]
        if not matches:
            raise SettingError(f"no files match {pattern!r}.")
        found.update(dict.fromkeys(matches))
    return list(found)


def read_lines(source: str) -> Iterator[str]:
    """Lines of a file ('-': standard input) without their ends; empty ones are left out. Raises SettingError."""
    try:
        # Whatever the encoding, commands get the bytes that stand there.
        file = open(  # noqa: SIM115
            sys.stdin.fileno() if source == "-" else source,
            encoding="utf-8-sig",
            errors="surrogateescape",
            closefd=source != "-",
        )
    except OSError as error:
        raise SettingError(f"cannot read the inputs {source!r}: {error.strerror}.") from None
    with file:
        yield from (line.rstrip("\r\n") for line in file if line.strip())


def command_inputs(line: CommandLine, options: RunOptions) -> Iterator[tuple[str, CommandInput]]:
    """The tasks, drawn as they are needed, each with what it is called here: nodes do not learn in which folders files
    lie. Raises SettingError where there are none, or too many sources."""
    given = [line.arguments is not None, bool(options.inputs), bool(options.files)]
    if sum(given) > 1:
        raise SettingError("give the inputs once: behind :::, with --inputs, or with --files.")
    if options.files:
        files = find_files(options.files)
        return ((str(path), CommandInput(n, path.name, _content(path))) for n, path in enumerate(files))
    if options.inputs:
        if options.inputs == "-" and sys.stdin is None:
            raise SettingError("cannot read the inputs '-': standard input is closed.")
        return ((text, CommandInput(n, text)) for n, text in enumerate(read_lines(options.inputs)))
    if line.arguments is None:
        raise SettingError("no inputs: give them behind ::: (fallow run -- ./tool {} ::: a b), --inputs or --files.")
    return ((text, CommandInput(n, text)) for n, text in enumerate(line.arguments))


def file_hint(line: CommandLine, options: RunOptions) -> str:
    """What to say to someone whose arguments name files of this machine, which nodes do not have; '' otherwise."""
    sent = {str(path) for path in options.ship}
    named = [text for text in line.arguments or () if text not in sent and Path(text).is_file()]
    if not named:
        return ""
    return f"{named[0]!r} is a file here, and arguments are sent as words: name files by --files to send them as well."


def _content(path: Path) -> Any:
    if path.stat().st_size <= SMALL_FILE_BYTES:
        return path.read_bytes()
    import fallow

    return fallow.File(path)


def make_plan(line: CommandLine, options: RunOptions) -> CommandPlan:
    """The command with the files that go along: --with, and the program itself where it is a file of ours."""
    shipped: dict[str, Path] = {}
    executable: list[str] = []
    words = list(line.words)
    for path in options.ship:
        if not path.is_file():
            why = "that is a folder: name files" if path.is_dir() else "there is no such file"
            raise SettingError(f"--with {path}: {why}.")
        shipped[path.name] = path
        if os.access(path, os.X_OK):
            executable.append(path.name)
    program = Path(words[0])
    if "/" in words[0] and not program.is_absolute():
        if not program.is_file():
            raise SettingError(
                f"there is no program {words[0]!r} here. Programs of the nodes are named without a path."
            )
        if not os.access(program, os.X_OK):
            raise SettingError(f"{words[0]!r} is not executable: chmod +x {words[0]}")
        shipped[program.name] = program
        executable.append(program.name)
        words[0] = f"./{program.name}"
    for index, word in enumerate(words[1:], 1):
        # `python thumb.py {}`: a script that lies here goes along, or the command could not run anywhere else.
        path = Path(word)
        if "{" not in word and not path.is_absolute() and path.suffix and path.is_file():
            shipped.setdefault(path.name, path)
            words[index] = path.name
    return CommandPlan(
        words=tuple(words),
        shipped={name: _content(path) for name, path in shipped.items()},
        executable=tuple(executable),
    )


# ---------------------------------------------------------------- outputs


def safe_path(text: str) -> PurePosixPath | None:
    """A relative path that stays below its folder, or None: names come from other machines."""
    path = PurePosixPath(text)
    if path.is_absolute() or not path.parts or any(part in ("..", "") or "\x00" in part for part in path.parts):
        return None
    if os.name == "nt" and any(":" in part or "\\" in part for part in path.parts):
        return None
    return path


def folder_name(number: int, argument: str) -> str:
    """'0007-scan' for task 7 with the argument 'scan.tif'."""
    stem = PurePosixPath(argument.replace("\\", "/")).stem or argument
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem)[:60].strip("._")
    return f"{number:04d}-{kept}" if kept else f"{number:04d}"


class Collector:
    """Writes what tasks made below one folder, and a summary with one line for each, in the order of the tasks."""

    def __init__(self, out: Path) -> None:
        self._out = out
        out.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = open(  # noqa: SIM115
            out / SUMMARY, "w", newline="", encoding="utf-8", errors="surrogateescape"
        )
        self._rows = csv.writer(self._file)
        self._rows.writerow(_SUMMARY_COLUMNS)
        self._next = 0
        self._early: dict[int, tuple[object, ...]] = {}
        """Lines of tasks that ended before an earlier one did."""
        self.done = 0
        self.failed = 0

    def outcome(self, outcome: CommandOutcome, called: str, error: str = "") -> None:
        """One task that ran, well or not. `called`: what stands in the summary for its argument."""
        folder = self._out / folder_name(outcome.number, outcome.argument)
        folder.mkdir(exist_ok=True)
        for name, mode, content in outcome.files:
            path = safe_path(name)
            if path is None:
                error = (error + f" A file with an unsafe name was left out: {name!r}.").strip()
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(mode | 0o600)
        for name, content in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
            taken = any(PurePosixPath(item[0]).parts[:1] == (f"{name}.txt",) for item in outcome.files)
            (folder / (f"{name}.fallow.txt" if taken else f"{name}.txt")).write_bytes(content)
        self._row(outcome.number, called, outcome.exit_code, outcome.seconds, outcome.host, folder.name, error)

    def lost(self, number: int, argument: str, error: str) -> None:
        """One task of which nothing came back."""
        self._row(number, argument, "", 0.0, "", "", error)

    def _row(
        self, number: int, argument: str, code: object, seconds: float, host: str, folder: str, error: str
    ) -> None:
        self._early[number] = (number, argument, code, f"{seconds:.3f}", host, folder, error)
        while self._next in self._early:
            self._rows.writerow(self._early.pop(self._next))
            self._next += 1
        self._file.flush()
        self.done += 1
        self.failed += bool(error)

    def close(self) -> None:
        for number in sorted(self._early):  # of a job that was interrupted
            self._rows.writerow(self._early[number])
        self._early.clear()
        self._file.close()


# ---------------------------------------------------------------- the job


def run_command_job(tail: list[str], options: RunOptions) -> int:
    """Run the job to its end. Exit code 1 if any task failed, 130 after Ctrl-C. Raises FallowError in words."""
    line = split_arguments(tail)
    plan = make_plan(line, options)
    inputs = command_inputs(line, options)
    if hint := file_hint(line, options):
        print(f"fallow: {hint}", file=sys.stderr)
    import fallow

    name = options.name or PurePosixPath(line.words[0]).name
    app = fallow.App(name)
    settings: dict[str, Any] = {"retries": options.retries, "cpu": options.cpu}
    if options.timeout_s:
        settings["timeout"] = options.timeout_s
    if options.memory:
        settings["memory"] = options.memory
    if options.max_nodes:
        settings["max_nodes"] = options.max_nodes
    env = environment(options)
    if env is not None:
        settings["env"] = env
    function = app.function(name=name, **settings)(run_command)

    drawn: dict[int, str] = {}

    def remembered() -> Iterator[CommandInput]:
        for called, task in inputs:
            drawn[task.number] = called
            yield task

    collector = Collector(options.out)
    started = time.monotonic()
    try:
        results = function.map(remembered(), kwargs={"plan": plan}, return_exceptions=True, order_outputs=False)
        for result in results:
            _take(result, collector, drawn)
    except KeyboardInterrupt:
        from fallow.sdk.script_end import interrupted

        interrupted()
        if collector.done:
            print(f"fallow: what {counted(collector.done, 'task')} made is in {options.out}/.", file=sys.stderr)
        return 130
    finally:
        collector.close()
    seconds = time.monotonic() - started
    if options.as_json:
        print_json({"tasks": collector.done, "failed": collector.failed, "seconds": seconds, "out": str(options.out)})
    else:
        words = f"{counted(collector.done, 'task')} in {seconds:.1f} s, {collector.failed} failed; "
        print(words + f"outputs in {options.out}/, one line for each in {options.out / SUMMARY}.")
    return 1 if collector.failed else 0


def _take(result: Any, collector: Collector, drawn: dict[int, str]) -> None:
    if isinstance(result, CommandOutcome):
        collector.outcome(result, drawn.pop(result.number, result.argument))
        return
    error = str(result)
    if isinstance(result, CommandFailed):
        number = result.outcome.number
        called = drawn.pop(number, result.outcome.argument)
        collector.outcome(result.outcome, called, error)
    else:
        number = result.index if isinstance(result, TaskError) else -1
        called = drawn.pop(number, "")
        collector.lost(number, called, error)
    error = "\n".join(map(harmless, error.removeprefix(f"task {number} ").split("\n")))  # a command's words are others'
    print(f"fallow: {f'task {number} ({called})' if number >= 0 else 'a task'}: {error}", file=sys.stderr)


def environment(options: RunOptions) -> Any:
    """The Env that --env or --pip describe; None without either. Raises SettingError."""
    if options.env is None and not options.pip:
        return None
    import fallow

    if options.env is None:
        return fallow.Env(pip=list(options.pip))
    if options.pip:
        raise SettingError("give the environment once: with --env or with --pip.")
    if not options.env.exists():
        raise SettingError(f"--env {options.env}: there is no such file.")
    if options.env.suffix == ".toml" or options.env.is_dir():
        return fallow.Env.from_pyproject(options.env)
    return fallow.Env.from_requirements(options.env)
