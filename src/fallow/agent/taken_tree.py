"""Moves what a sandbox has built to a folder of the agent's: plain files and folders, and nothing else.

The sandbox has ended: nothing changes meanwhile. No link is followed, none is taken, and files are the agent's own
afterwards, readable by all and writable by nobody else.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fallow.model.errors import EnvironmentFailed

FILES_LIMIT = 500_000
DEPTH_LIMIT = 64


def take_over(source: Path, target: Path) -> None:
    """Move all that lies in `source` and not in `target` already; both on one file system. What `target` has stays as
    it is, and its links are not followed either. Raises EnvironmentFailed where there is something else than plain
    files, or too much; OSError."""
    _Taking().folder(_opened(str(source)), _opened(str(target)), "", 0)


class _Taking:
    def __init__(self) -> None:
        self._left = FILES_LIMIT

    def folder(self, source: int, target: int, path: str, depth: int) -> None:
        """Closes both descriptors."""
        try:
            if depth > DEPTH_LIMIT:
                raise EnvironmentFailed(f"the environment has folders more than {DEPTH_LIMIT} deep.")
            for name in os.listdir(source):
                self._left -= 1
                if self._left < 0:
                    raise EnvironmentFailed(f"the environment has more than {FILES_LIMIT:,} files.")
                self._entry(source, target, name, f"{path}/{name}".lstrip("/"), depth)
        finally:
            os.close(source)
            os.close(target)

    def _entry(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        about = os.stat(name, dir_fd=source, follow_symlinks=False)
        try:
            there = os.stat(name, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is not None and not (stat.S_ISDIR(there.st_mode) and stat.S_ISDIR(about.st_mode)):
            return
        if stat.S_ISDIR(about.st_mode):
            if there is None:
                os.mkdir(name, 0o755, dir_fd=target)
            _own(name, source, about, 0o755)
            self.folder(_opened(name, source), _opened(name, target), path, depth + 1)
        elif stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
            _own(name, source, about, 0o755 if about.st_mode & 0o111 else 0o644)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        else:
            kind = "a link" if stat.S_ISLNK(about.st_mode) or stat.S_ISREG(about.st_mode) else "no file"
            raise EnvironmentFailed(f"the environment's {path!r} is {kind}; only plain files are taken from a build.")


def _own(name: str, folder: int, about: os.stat_result, mode: int) -> None:
    """(Which clears what the owner before could set: set-user-ID, foreign groups.)"""
    if about.st_uid != os.geteuid() or about.st_gid != os.getegid():
        os.chown(name, os.geteuid(), os.getegid(), dir_fd=folder, follow_symlinks=False)
    os.chmod(name, mode, dir_fd=folder)


def _opened(path: str, folder: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
