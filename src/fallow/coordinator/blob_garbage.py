"""Deletes blobs that no job needs any more."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Container, Sequence
from datetime import UTC, datetime

import obstore
from obstore.store import LocalStore

from fallow.wire.blob_files import INCOMING, BlobFiles, is_digest, is_kept

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


def delete(files: BlobFiles, digest: str, is_garbage: Callable[[str, os.stat_result], bool]) -> bool:
    """Delete one blob, if it is still garbage once it was moved aside: whoever puts it again at this very moment, or
    names it, finds it there or puts it anew. Raises OSError."""
    path, aside = files.path(digest), files.folder / TRASH / digest
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        aside.parent.mkdir(exist_ok=True, mode=0o700)
        os.replace(path, aside)
    if is_garbage(digest, aside.stat()):
        aside.unlink()
        return True
    os.replace(aside, path)  # (what somebody has put there meanwhile is the same)
    return False


def delete_orphans(
    files: BlobFiles,
    live_among: Callable[[Sequence[str]], Collection[str]],
    needed: Callable[[str], bool],
    before_unix_s: float,
) -> int:
    """Delete blobs that were put for a job (not as objects) before that time, and that no job names: who has put them
    died before it could say so, or nobody wanted them. Blocks; returns how many were deleted."""

    def is_garbage(digest: str, about: os.stat_result) -> bool:
        return about.st_mtime < before_unix_s and not is_kept(about) and not needed(digest)

    deleted = 0
    for folder in sorted(files.folder.glob("[0-9a-f][0-9a-f]")):
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if is_digest(entry.name) and is_garbage(entry.name, entry.stat())]
        live = live_among(found) if found else ()
        for digest in found:
            if digest not in live:
                with contextlib.suppress(OSError):
                    deleted += delete(files, digest, is_garbage)
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
