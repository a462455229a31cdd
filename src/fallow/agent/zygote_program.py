"""The program that a zygote is, as its sandbox is to start it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fallow.sandbox.protocol import Program
from fallow.worker.zygote import THREAD_VARIABLES

_CODE = (
    "import sys; sys.path[:0] = {path!r}; {last}"
    "from fallow.worker.zygote import main; main({descriptor}, {parent}, {scratch!r})"
)
_PASSED_VARIABLES = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""All that a sandbox gets of the agent's environment."""


def zygote_argv(
    python: Path, descriptor: int, path: Sequence[str], parent: int, scratch: str, last: Sequence[str] = ()
) -> tuple[str, ...]:
    """`path`: folders that come first among those to import from, `last`: that
    come last; `parent`: the agent's pid as it is seen there, 0
    where it is not; `scratch`: the folder that workers write to."""
    more = f"sys.path += {list(last)!r}; " if last else ""
    code = _CODE.format(path=list(path), last=more, descriptor=descriptor, parent=parent, scratch=scratch)
    return (str(python), "-P", "-c", code)


def plain_program(python: Path, descriptor: int, path: Sequence[str], cpu: int, scratch: Path, log: Path) -> Program:
    """In no sandbox: of the agent's environment it has what is not about Python or Fallow."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FALLOW_"))}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(cpu))
    environment["PYTHONUNBUFFERED"] = "1"
    return Program(
        argv=zygote_argv(python, descriptor, path, os.getpid(), str(scratch)),
        environment=environment,
        cwd=str(scratch),
        descriptors=(descriptor,),
        log=str(log),
    )


def confined_environment(cpu: int, scratch: str) -> dict[str, str]:
    """The variables in a sandbox."""
    environment = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(cpu))
    return environment | {"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "PYTHONUNBUFFERED": "1"}
