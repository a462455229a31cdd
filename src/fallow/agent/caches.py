"""What a node keeps for later (environments, modules, data), within the disk that is lent: shown, pruned, cleared.

Everything here blocks: it runs in a thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from msgspec import Struct

from fallow.core.evict import Kept, over_limit, unused_since

ENVIRONMENT, MODULES, DATA = "environment", "modules", "data"
GOING = ".going-"
BUILDING = ".building-"
"""As Environments names what it works on."""
IN_USE_S = 300.0
"""Data that was asked for so recently may still be read."""


class Usage(Struct, frozen=True):
    """`scratch_bytes`: what running tasks and builds write, which goes by itself when they end."""

    kept: tuple[Kept, ...]
    scratch_bytes: int

    @property
    def kept_bytes(self) -> int:
        return sum(one.size_bytes for one in self.kept)


class Caches:
    """The caches under `folder`. `in_use`: paths of interpreters and of modules' folders that work needs now."""

    def __init__(
        self, folder: Path, in_use: Callable[[], Collection[str]], unseen: Callable[[], int] = lambda: 0
    ) -> None:
        """`unseen`: bytes that running work holds where they are not found here."""
        self._folder = folder
        self._in_use = in_use
        self._unseen = unseen
        self._sizes: dict[str, tuple[float, int]] = {}
        """Of folders, by path: (mtime, bytes). What is in one does not change once it is made."""

    def look(self, now_unix_s: float) -> Usage:
        """All that is there. Folders that were measured already are not walked again."""
        needed = list(self._in_use())
        kept: list[Kept] = []
        seen: set[str] = set()
        working = tree_bytes(self._folder / "scratch") + self._unseen()
        for kind, root in ((ENVIRONMENT, "environments"), (MODULES, "modules")):
            for entry in _entries(self._folder / root):
                if entry.name.startswith("."):
                    working += tree_bytes(Path(entry.path)) if entry.name.startswith(BUILDING) else 0
                    continue
                used = any(path == entry.path or path.startswith(f"{entry.path}{os.sep}") for path in needed)
                about = _stat(entry)
                if about is not None:
                    seen.add(entry.path)
                    size = self._size(entry.path)
                    kept.append(Kept(kind, entry.name[:16], entry.path, size, about.st_mtime, used))
        for entry in _entries(self._folder / "blobs"):
            about = _stat(entry)
            if about is not None and entry.is_file(follow_symlinks=False):
                used = now_unix_s - about.st_mtime < IN_USE_S
                kept.append(Kept(DATA, entry.name[:16], entry.path, about.st_blocks * 512, about.st_mtime, used))
        self._sizes = {path: known for path, known in self._sizes.items() if path in seen}
        return Usage(tuple(kept), working)

    def _size(self, path: str) -> int:
        if path not in self._sizes:
            self._sizes[path] = (0.0, tree_bytes(Path(path)))
        return self._sizes[path][1]

    def _remove_halves(self) -> None:
        """What an agent that died was removing."""
        for root in ("environments", "modules"):
            for entry in _entries(self._folder / root):
                if entry.name.startswith(GOING):
                    shutil.rmtree(entry.path, ignore_errors=True)

    def prune(self, limit_bytes: int, now_unix_s: float) -> Usage:
        """Remove what was used longest ago until all is within the limit (0: none). Returns what is left."""
        self._remove_halves()
        usage = self.look(now_unix_s)
        going = over_limit(usage.kept, usage.scratch_bytes, limit_bytes)
        gone = {one.path for one in self._remove(going)}
        return Usage(tuple(one for one in usage.kept if one.path not in gone), usage.scratch_bytes)

    def clear(self, older_s: float, now_unix_s: float) -> tuple[list[Kept], list[Kept]]:
        """Remove all that was not used for so long. Returns (removed, left because it is in use)."""
        usage = self.look(now_unix_s)
        removed = self._remove(unused_since(usage.kept, now_unix_s - older_s))
        return removed, [one for one in usage.kept if one.in_use]

    def _is_needed(self, path: str) -> bool:
        return any(needed == path or needed.startswith(f"{path}{os.sep}") for needed in list(self._in_use()))

    def _remove(self, going: list[Kept]) -> list[Kept]:
        gone: list[Kept] = []
        for one in going:
            try:
                if os.stat(one.path).st_mtime != one.used_unix_s or self._is_needed(one.path):
                    continue  # somebody came to use it meanwhile
                if one.kind == DATA:
                    os.unlink(one.path)
                else:
                    # Out of sight in one step: nobody finds half an environment.
                    aside = f"{os.path.dirname(one.path)}{os.sep}{GOING}{os.path.basename(one.path)}"
                    os.rename(one.path, aside)
                    shutil.rmtree(aside, ignore_errors=True)
            except OSError:
                continue
            self._sizes.pop(one.path, None)
            gone.append(one)
        return gone


def tree_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk, links not followed; 0 where there is none."""
    total = 0
    todo = [str(folder)]
    while todo:
        for entry in _entries(Path(todo.pop())):
            about = _stat(entry)
            if about is None:
                continue
            # A file with several links (uv links its cache) costs once, wherever it is counted.
            total += getattr(about, "st_blocks", about.st_size // 512) * 512 // max(1, about.st_nlink)
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
    return total


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return entry.stat(follow_symlinks=False)
    return None
