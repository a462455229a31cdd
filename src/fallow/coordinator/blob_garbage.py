"""Deletes blobs that no job needs any more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Container
from datetime import UTC, datetime

import obstore
from obstore.store import LocalStore

from fallow.wire.blob_files import INCOMING, BlobFiles, is_digest

TRASH = ".trash"

ABANDONED_AFTER_S = 86_400.0
"""Uploads that were not continued for so long are deleted."""


def delete_unreferenced(
    files: BlobFiles, live: Container[str], older_than_s: float, clock: Callable[[], float] = time.time
) -> int:
    """Delete blobs that are not in `live` and were neither put nor asked for during `older_than_s`. Blocks; returns
    how many were deleted.

    `older_than_s` must be longer than it takes from putting a blob to committing what names it. A blob that is put
    again at this very moment survives: it is moved aside, its age is looked at once more, and then it is deleted
    or moved back (see BlobFiles)."""
    store = LocalStore(files.folder)
    now = clock()
    deleted = 0
    for batch in obstore.list(store):
        for found in batch:
            path, name = found["path"], found["path"].rsplit("/", 1)[-1]
            age_s = _age_s(found["last_modified"], now)
            if path.startswith(f"{INCOMING}/"):
                if age_s > ABANDONED_AFTER_S:
                    _delete(store, path)
            elif not is_digest(name):
                continue
            elif path == f"{TRASH}/{name}":  # a collection that was ended in the middle
                deleted += _settle(store, name, name not in live, older_than_s, now)
            elif path == f"{name[:2]}/{name}" and name not in live and age_s > older_than_s:
                with contextlib.suppress(FileNotFoundError):
                    obstore.rename(store, path, f"{TRASH}/{name}")
                    deleted += _settle(store, name, True, older_than_s, now)
    return deleted


def _settle(store: LocalStore, name: str, is_garbage: bool, older_than_s: float, now: float) -> bool:
    """Delete what was moved aside if it is still old, else move it back."""
    aside = f"{TRASH}/{name}"
    if is_garbage and _age_s(obstore.head(store, aside)["last_modified"], now) > older_than_s:
        _delete(store, aside)
        return True
    try:
        obstore.rename(store, aside, f"{name[:2]}/{name}", overwrite=False)
    except obstore.exceptions.AlreadyExistsError:
        _delete(store, aside)
    return False


def _age_s(modified: datetime, now: float) -> float:
    return now - modified.astimezone(UTC).timestamp()


def _delete(store: LocalStore, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        obstore.delete(store, path)
