"""Runs a command as a task: the function of the jobs that `fallow run -- ./tool {}` submits.

Every task gets a fresh scratch folder: its input file and the shipped files are placed there, the command runs in
it, and everything that it creates or changes there comes back, with its output and exit code.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct

OUTPUT_LIMIT_BYTES = 64 * 1024 * 1024
"""Kept of each of stdout and stderr: the beginning and the end; what lies between is dropped, with a word."""
LAST_LINES = 5


class CommandPlan(Struct, frozen=True):
    """What is the same for all tasks of a job."""

    words: tuple[str, ...]
    """The command. {} is the argument, {/} its base name, {.} that without suffix, {#} the task's number."""
    shipped: Mapping[str, Any] = {}
    """Files to place in the scratch folder, by name: bytes, or a path on this node. They are not collected."""
    executable: tuple[str, ...] = ()
    """Which of the shipped files are programs."""


class CommandInput(Struct, frozen=True):
    """One task. `file` is the content of the input file that is placed under `argument`'s name: bytes, or a path
    on this node; None where the argument is plain text."""

    number: int
    argument: str
    file: Any = None


class CommandOutcome(Struct, frozen=True):
    """What came of a task. `files`: (path in the scratch folder, permission bits, content)."""

    number: int
    argument: str
    exit_code: int
    seconds: float
    stdout: bytes
    stderr: bytes
    files: tuple[tuple[str, int, bytes], ...]
    host: str = ""


class CommandFailed(Exception):
    """The command ended with an exit code other than 0. `outcome` has all that it made."""

    def __init__(self, message: str, outcome: CommandOutcome) -> None:
        super().__init__(message)
        self.outcome = outcome

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.outcome)


_MARK = re.compile(r"\{[/.#]?\}")


def fill_words(words: Sequence[str], argument: str, number: int) -> list[str]:
    """The command of one task: placeholders replaced, the argument appended where none stands."""
    name = PurePosixPath(argument).name
    stem = PurePosixPath(name).stem if name else ""
    here = "./" if argument.startswith("./-") else ""  # or the command would take them for options
    values = {"{}": argument, "{/}": here + name, "{.}": here + stem, "{#}": str(number)}
    # In one pass, so that an argument that looks like a placeholder stays as it is.
    filled = [_MARK.sub(lambda match: values[match[0]], word) for word in words]
    return filled if any(_MARK.search(word) for word in words) else [*filled, argument]


def run_command(task: CommandInput, plan: CommandPlan) -> CommandOutcome:
    """Run the command on one input. Raises CommandFailed for an exit code other than 0."""
    with _scratch() as (work, logs):
        name = _place_input(work, task)
        for shipped, content in plan.shipped.items():
            _place(work / shipped, content, executable=shipped in plan.executable)
        before = _snapshot(work)
        words = fill_words(plan.words, name, task.number)
        started = time.perf_counter()
        code = _run(words, work, logs)
        seconds = time.perf_counter() - started
        outcome = CommandOutcome(
            number=task.number,
            argument=task.argument,
            exit_code=code,
            seconds=seconds,
            stdout=_kept(logs / "stdout"),
            stderr=_kept(logs / "stderr"),
            files=tuple(_collect(work, before)),
            host=os.uname().nodename if hasattr(os, "uname") else "",
        )
    if code != 0:
        raise CommandFailed(_failure_words(words, outcome), outcome)
    return outcome


@contextlib.contextmanager
def _scratch() -> Iterator[tuple[Path, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="fallow-command-"))
    try:
        work, logs = folder / "work", folder / "logs"
        work.mkdir()
        logs.mkdir()
        yield work, logs
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place_input(work: Path, task: CommandInput) -> str:
    """Place the input file, if there is one. Returns what stands for {}."""
    if task.file is None:
        return task.argument
    name = PurePosixPath(task.argument.replace("\\", "/")).name
    _place(work / name, task.file, executable=False)
    return f"./{name}" if name.startswith("-") else name


def _place(path: Path, content: Any, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (bytes, bytearray, memoryview)):
        path.write_bytes(content)
    else:
        # A copy, not a link: the node's cache must stay as it is whatever the command does to its input.
        shutil.copyfile(os.fspath(content), path)
    path.chmod(0o755 if executable else 0o644)


def _run(words: list[str], work: Path, logs: Path) -> int:
    program = words[0]
    if os.sep in program and not os.path.isabs(program):
        program = str(work / program)
    with open(logs / "stdout", "wb") as out, open(logs / "stderr", "wb") as err:
        try:
            process = subprocess.Popen(
                [program, *words[1:]],
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=_variables(),
            )
        except FileNotFoundError:
            err.write(os.fsencode(f"{words[0]}: {_missing_words(program)}\n"))
            return 127
        except OSError as error:
            why = _FORMAT_WORDS if error.errno == errno.ENOEXEC else error.strerror
            err.write(os.fsencode(f"{words[0]}: {why}\n"))
            return 126
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


_FORMAT_WORDS = "this node cannot run it. Is it made for such a machine? Has a script a first line such as #!/bin/sh?"


def _variables() -> dict[str, str]:
    """The worker's own, with the programs of the job's environment before the node's."""
    own = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", os.defpath)
    if sys.prefix == sys.base_prefix:  # the system's: its `python` will do where there is no other
        return {**os.environ, "PATH": f"{path}{os.pathsep}{own}"}
    return {**os.environ, "PATH": f"{own}{os.pathsep}{path}", "VIRTUAL_ENV": sys.prefix}


def _missing_words(program: str) -> str:
    """Why a program is not found: where it is there, what its first line names is not."""
    if os.sep not in program or not os.path.isfile(program):
        return "no such program on this node"
    with open(program, "rb") as file:
        first = file.readline(200)
    if first.startswith(b"#!"):
        return f"its first line names {os.fsdecode(first[2:].strip())!r}, which is not on this node"
    return "what loads programs of its kind is not on this node"


def _snapshot(work: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in work.rglob("*") if path.is_file()}


def _collect(work: Path, before: Mapping[Path, tuple[int, int]]) -> Iterator[tuple[str, int, bytes]]:
    """Regular files that are new or changed, in order of their names. Links are not followed."""
    for path in sorted(work.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        status = path.stat()
        if before.get(path) == (status.st_mtime_ns, status.st_size):
            continue
        if not status.st_mode & 0o400:
            path.chmod(status.st_mode | 0o400)
        yield path.relative_to(work).as_posix(), status.st_mode & 0o777, path.read_bytes()


def _kept(path: Path) -> bytes:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= OUTPUT_LIMIT_BYTES:
            return file.read()
        half = OUTPUT_LIMIT_BYTES // 2
        first = file.read(half)
        file.seek(size - half)
        return first + f"\n... {size - 2 * half} bytes dropped ...\n".encode() + file.read()


def _failure_words(words: Sequence[str], outcome: CommandOutcome) -> str:
    code = outcome.exit_code
    how = f"exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-code).name
    said = (outcome.stderr or outcome.stdout).decode(errors="replace").splitlines()
    last = [line for line in said if line.strip()][-LAST_LINES:]
    return f"{' '.join(words)[:200]} ended with {how}" + (":\n" + "\n".join(last) if last else ".")
