"""What a coordinator has given up and not deleted yet, in a file beside the blobs: should it die, another one (or the
same, started anew) deletes that in its place. Without it all of that would lie about until it counts as forgotten."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fallow.wire.blob_files import is_digest

PREFIX = ".garbage-"
_LINES_LEAST = 4096


class GarbageLog:
    """This coordinator's file in `folder`. Methods block; a disk that is full loses what was to be noted."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / f"{PREFIX}{name}"
        self._lines = 0

    def note(self, fresh: Sequence[str], garbage: Sequence[str]) -> None:
        """`fresh`: what was given up since the last time; `garbage`: all that is not deleted yet, them included."""
        if not garbage:
            self.close()
            return
        with contextlib.suppress(OSError):
            if self._lines + len(fresh) > _LINES_LEAST + 4 * len(garbage):
                anew = self._path.with_suffix(".new")
                anew.write_text("".join(f"{digest}\n" for digest in garbage))
                anew.replace(self._path)
                self._lines = len(garbage)
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, "".join(f"{digest}\n" for digest in fresh).encode())
                os.utime(descriptor if os.utime in os.supports_fd else self._path)
            finally:
                os.close(descriptor)
            self._lines += len(fresh)

    def left_by_others(self, before_unix_s: float) -> Iterator[tuple[Path, list[str]]]:
        """Files that no coordinator has written to since then, with what they name. Delete each once that is done."""
        for path in self._folder.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if path != self._path and path.stat().st_mtime < before_unix_s:
                    yield path, [line for line in path.read_text(errors="replace").split("\n") if is_digest(line)]

    def close(self) -> None:
        """Nothing is left."""
        if self._lines:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._lines = 0
