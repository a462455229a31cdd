"""Copies of a pool's blobs, for backups: a folder that only grows by what it does not have yet, and back from it.

All blobs are copied, not only those that jobs name: objects that scripts have put are named inside of inputs, where
nobody but the customer's own code can look.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path

import blake3
from msgspec import Struct

from fallow.coordinator.blob_store import BlobStore
from fallow.model.errors import PoolRefused, SettingError
from fallow.wire.blob_files import BlobFiles, hash_file, write_all

Report = Callable[[str], None]
_EVERY = 1000


class Copied(Struct, frozen=True):
    """What a copy came to. `missing`: blobs that are needed and were not there."""

    copied: int
    kept: int
    missing: tuple[str, ...] = ()


def copy_out(blobs: BlobStore, folder: Path, needed: Collection[str], report: Report = lambda line: None) -> Copied:
    """Copy what the folder lacks, checked by its digest. Blobs that are deleted meanwhile are left out. Raises
    PoolRefused where the disk is full, or the pool's own copy is damaged."""
    files = BlobFiles(folder)
    files.prepare()
    for left in (folder / ".incoming").iterdir():  # of a copy that was cut short
        left.unlink()
    copied = kept = 0
    for digest in blobs.digests():
        if files.path(digest).exists():
            kept += 1
        elif _fetch(blobs, files, digest):
            copied += 1
            if copied % _EVERY == 0:
                report(f"{copied} blobs copied")
    missing = tuple(
        digest for digest in sorted(needed) if not files.path(digest).exists() and not _fetch(blobs, files, digest)
    )
    return Copied(copied, kept, missing)


def copy_in(folder: Path, blobs: BlobStore, needed: Collection[str], report: Report = lambda line: None) -> Copied:
    """Put what the folder has and the store lacks. Raises SettingError where a blob is needed and not in the folder,
    before anything is put, and for a damaged one."""
    from fallow.coordinator.blob_store import FolderBlobs

    source = FolderBlobs(folder, "", "", 0)
    missing = [digest for digest in sorted(needed) if source.size_of(digest) is None]
    if missing:
        raise SettingError(
            f"{folder} lacks {len(missing)} of the blobs that the backup needs (the first: {missing[0][:16]}). Is it "
            "the folder that was written with this backup?"
        )
    copied = kept = 0
    for digest in source.digests():
        path = folder / digest[:2] / digest
        if blobs.size_of(digest) == path.stat().st_size:
            kept += 1
            continue
        if hash_file(path)[0] != digest:
            raise SettingError(f"the blob {digest[:16]} in {folder} is damaged: its bytes are not its own.")
        blobs.write(digest, path)
        copied += 1
        if copied % _EVERY == 0:
            report(f"{copied} blobs put back")
    return Copied(copied, kept)


def _fetch(blobs: BlobStore, files: BlobFiles, digest: str) -> bool:
    part = files.new_incoming()
    hasher = blake3.blake3()
    size = 0
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for chunk in blobs.read(digest):
                hasher.update(chunk)
                write_all(descriptor, chunk)
                size += len(chunk)
        except FileNotFoundError:
            return False
        finally:
            os.close(descriptor)
        if hasher.hexdigest() != digest:
            raise PoolRefused(
                f"the pool's copy of blob {digest[:16]} is damaged: its bytes are not its own.", "invalid"
            )
        files.move(part, digest, size)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return True
