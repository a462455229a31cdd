"""A disk that is full while a part of the pool starts, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fallow.model.errors import NO_ROOM, SettingError


@contextmanager
def full_disk_in_words(folder: Path) -> Iterator[None]:
    """`folder`: where the part keeps what it needs. Raises SettingError instead of the system's error."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise SettingError(
            f"the disk under {error.filename or folder} is full ({error.strerror}). Free some room and start again."
        ) from error
