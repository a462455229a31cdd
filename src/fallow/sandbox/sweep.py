"""What an agent makes outside its own folder carries its name, so that the next start removes what a dead one left.

The name is `fallow-PID-STARTED-...`, the agent's process and when it started, in ticks since boot: a number that was
given to another process since is told apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

_NAMED = re.compile(r"fallow-(\d+)-(\d+)-")
_MNT_DETACH = 2
REMOVE_WITHIN_S = 2.0


def started(pid: int) -> int:
    """Ticks from boot to the process's start; 0: there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def owner_prefix() -> str:
    """Of all names that this process gives."""
    return f"fallow-{os.getpid()}-{_own_start(os.getpid())}-"


@functools.cache
def _own_start(pid: int) -> int:
    return started(pid)


def is_orphan(name: str) -> bool:
    """Whether it is named by a process that has gone."""
    found = _NAMED.match(name)
    return found is not None and started(int(found[1])) != int(found[2])


def own_folder(kind: str) -> str:
    """A new folder, in /run where one may. `kind` ends its prefix. Raises OSError."""
    parent = "/run" if os.access("/run", os.W_OK) else tempfile.gettempdir()
    return tempfile.mkdtemp(prefix=owner_prefix() + kind, dir=parent)


def sweep(parents: Iterable[Path]) -> list[Path]:
    """Remove folders of dead agents; control groups among them when they are empty. Returns what was removed."""
    removed = []
    for parent in dict.fromkeys(parents):
        try:
            names = os.listdir(parent)
        except OSError:
            continue
        for name in names:
            path = parent / name
            if is_orphan(name) and _is_own_folder(path):
                with contextlib.suppress(OSError):
                    _remove(path)
                if not os.path.lexists(path):
                    removed.append(path)
    return removed


def _is_own_folder(path: Path) -> bool:
    """Of other users' agents nothing is looked at, and nothing could be removed."""
    try:
        about = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()


@functools.cache
def sweep_machine() -> tuple[Path, ...]:
    """Once in an agent's life: what dead agents left in /run, the folder of temporary files and the control groups."""
    from fallow.sandbox.cgroups import find_place

    place = find_place()
    groups = place.parents.values() if place is not None else ()
    return tuple(sweep([Path("/run"), Path(tempfile.gettempdir()), *groups]))


def _remove(path: Path) -> None:
    if (path / "cgroup.procs").exists():
        # The files of a control group cannot be removed; what still runs in it is ended first.
        with contextlib.suppress(OSError):
            for line in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line), 9)
        deadline = time.monotonic() + REMOVE_WITHIN_S
        while path.exists():
            try:
                path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.002)
        return
    if os.path.ismount(path):
        ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_DETACH)
    if not os.path.ismount(path):
        shutil.rmtree(path, ignore_errors=True)
