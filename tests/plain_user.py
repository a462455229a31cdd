"""An ordinary user of this machine, though the tests run as root: nearly every provider is one.

    python -m tests.plain_user COMMAND...     (as root) runs it as the user USER

Folders that other users may not enter (an interpreter below root's home) are shown to it by mounts that nobody else
sees; their own permissions stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.sandbox.spawner import reachable
from tests.pool import REPOSITORY

USER = 1_999_000_000
"""Nobody's."""
_CLONE_NEWNS = 0x20000
_BIND, _REC, _PRIVATE, _DETACH = 0x1000, 0x4000, 0x40000, 2
_libc = ctypes.CDLL(None, use_errno=True)


def command(*words: str) -> list[str]:
    """The words, as the user would run them; as they are where the tests run as an ordinary user anyway."""
    return [sys.executable, "-m", "tests.plain_user", *words] if os.geteuid() == 0 else list(words)


@contextlib.contextmanager
def home_of_user() -> Iterator[Path]:
    """A folder that is the user's own. Skips aloud where no user can be had."""
    if why := trouble():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="fallow-plain-user-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, USER, USER)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def trouble() -> str:
    """Why no command can be run as an ordinary user here; '': it can."""
    if sys.platform != "linux":
        return "sandboxes need Linux"
    words = command(sys.executable, "-c", "import os, fallow, tests; print(os.getuid(), fallow.__file__)")
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        return f"no command can be run as an ordinary user here: {done.stderr.strip()[-300:]}"
    return ""


def environment(home: Path, **variables: str) -> dict[str, str]:
    """What a login gives, and no more."""
    return {
        "HOME": str(home),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LOGNAME": "plain",
        "LANG": "C.UTF-8",
        **variables,
    }


def main(words: list[str]) -> None:
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "a mount namespace is refused")
    _mount("none", "/", _REC | _PRIVATE)
    needed = [sys.base_prefix, sys.prefix, str(REPOSITORY)]
    for folder in dict.fromkeys(os.path.realpath(path) for path in needed):
        _show(folder)
    for held in _covered.values():
        _libc.umount2(held.encode(), _DETACH)
        os.rmdir(held)
    for limit, most in ((resource.RLIMIT_RTPRIO, 95), (resource.RLIMIT_NICE, 40)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (most, most))  # as players' and musicians' accounts have
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    os.execvp(words[0], words)


_covered: dict[str, str] = {}
"""Closed folders, and where they are held."""


def _show(folder: str) -> None:
    """Below a closed folder nothing but what is needed is shown."""
    while not reachable(f"{folder}/x"):
        if reachable(folder):
            raise OSError(f"{folder} itself is closed to other users")
        closed = next(
            path for path in reversed([folder, *map(str, Path(folder).parents)]) if not reachable(f"{path}/x")
        )
        if closed not in _covered:
            held = _covered[closed] = tempfile.mkdtemp()
            _mount(closed, held, _BIND | _REC)
            _mount("none", closed, 0, "tmpfs", "mode=0755,size=1m")
        os.makedirs(folder)
        _mount(_covered[closed] + folder.removeprefix(closed), folder, _BIND | _REC)


def _mount(source: str, target: str, flags: int, kind: str = "", options: str = "") -> None:
    words = [source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None]
    if _libc.mount(*words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mounting {source} at {target}: {os.strerror(code)}")


if __name__ == "__main__":
    main(sys.argv[1:])
