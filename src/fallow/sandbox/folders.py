"""Folders that are written by a program which may not want them to be measured or removed.

They are walked by descriptors: no link is followed, whatever is swapped meanwhile, and no path is too long. The agent
is mostly the same user as the program, so that a folder whose permissions were taken away is closed to both: it is
opened again, and who is quicker than that is ended.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
from pathlib import Path

from fallow.sandbox.tree import Hidden

ENTRY_BYTES = 4096
"""What a file or folder counts at least, so that empty files are bounded too."""
DEPTH_LIMIT = 64
"""Of folders in folders, each of which is held open while what is below is counted."""
_MEASURED, _CHANGED = 0o500, 0o700
"""Permissions that are needed of a folder."""


def usage_bytes(folder: str, limit: int = 0) -> int:
    """Disk that a folder takes, by blocks. Stops counting above `limit`; 0: never. Raises Hidden."""
    return _Walk(limit).below(folder, None, 0)


class _Walk:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0

    def below(self, name: str, parent: int | None, depth: int) -> int:
        if depth > DEPTH_LIMIT:
            raise Hidden(f"it made folders more than {DEPTH_LIMIT} deep, in which files cannot be measured")
        try:
            folder = _opened(name, parent, _MEASURED)
        except FileNotFoundError:
            return self._total
        except NotADirectoryError:  # a link or a file since
            return self._total
        except PermissionError:
            raise Hidden("it closed folders, so that files in them cannot be measured") from None
        try:
            for found in self._entries(folder):
                if self._limit and self._total > self._limit:
                    break
                self.below(found, folder, depth + 1)
        except FileNotFoundError:  # removed meanwhile
            pass
        finally:
            os.close(folder)
        return self._total

    def _entries(self, folder: int) -> list[str]:
        """Counts what lies there, and gives the folders among it."""
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except PermissionError:
                    raise Hidden("it closed folders, so that files in them cannot be measured") from None
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
                self._total += max(status.st_blocks * 512, ENTRY_BYTES)
                if self._limit and self._total > self._limit:
                    break
        return folders


def remove_tree(folder: Path) -> None:
    """Remove a folder, whatever permissions are set in it and however deep it is. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        top = _opened(str(folder), None, _CHANGED)
        try:
            _empty(top)
        finally:
            os.close(top)
        os.rmdir(folder)


def _empty(top: int) -> None:
    """Folders below are moved up beside each other, so that no depth needs a stack."""
    mark, numbers = secrets.token_hex(8), itertools.count()
    todo = _unlinked(top)
    while todo:
        name = todo.pop()
        with contextlib.suppress(OSError):
            at = _opened(name, top, _CHANGED)
            try:
                for below in _unlinked(at):
                    moved = f".{mark}-{next(numbers)}"
                    with contextlib.suppress(OSError):
                        os.close(_opened(below, at, _CHANGED))  # (a folder is moved by who may write it)
                        os.rename(below, moved, src_dir_fd=at, dst_dir_fd=top)
                        todo.append(moved)
            finally:
                os.close(at)
            os.rmdir(name, dir_fd=top)


def _unlinked(folder: int) -> list[str]:
    """Removes all but folders, and gives these."""
    left = []
    for name in os.listdir(folder):
        try:
            os.unlink(name, dir_fd=folder)
        except (IsADirectoryError, PermissionError):
            left.append(name)
        except OSError:
            continue
    return left


def _opened(name: str, parent: int | None, needed: int) -> int:
    """Raises OSError. The folder itself is opened to its owner again, by the one descriptor that is read then."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        about = os.fstat(handle)
        itself = f"/proc/self/fd/{handle}"
        if about.st_mode & needed != needed and about.st_uid == os.geteuid():
            os.chmod(itself, stat.S_IMODE(about.st_mode) | 0o700)
        return os.open(itself, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)
