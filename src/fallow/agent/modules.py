"""The customer's own modules, unpacked on the node: content-addressed folders that go first on sys.path."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from fallow.model.errors import EnvironmentFailed
from fallow.model.ids import Digest

UNPACKED_LIMIT_BYTES = 1024 * 1024 * 1024
FILES_LIMIT = 50_000
KEPT_LIMIT = 64
"""Unpacked folders that are kept for later."""


def unpacked(digest: Digest, root: Path) -> Path | None:
    """The folder root/<digest>, renewed in age; None where it is not there."""
    folder = root / digest
    try:
        os.utime(folder)
    except OSError:
        return None
    return folder


def unpack_modules(digest: Digest, archive: bytes | memoryview | Path, root: Path) -> Path:
    """The folder root/<digest> with the archive's files; unpacked now if it is not there yet.

    A crash leaves nothing half: the folder appears in one step. Raises EnvironmentFailed for an archive that is
    damaged, too large, or names files outside of the folder."""
    if (known := unpacked(digest, root)) is not None:
        return known
    folder = root / digest
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Jobs that begin together ask at the same time: each unpacks into a folder of its own, and the first one counts.
    building = root / f".unpacking-{digest}-{secrets.token_hex(4)}-{os.getpid()}"
    try:
        _unpack(archive, building)
        try:
            os.rename(building, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise EnvironmentFailed(f"the job's own modules cannot be unpacked on this node: {error}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _unpack(archive: bytes | memoryview | Path, folder: Path) -> None:
    source = archive if isinstance(archive, Path) else io.BytesIO(archive)
    with zipfile.ZipFile(source) as opened:
        entries = opened.infolist()
        if len(entries) > FILES_LIMIT:
            raise EnvironmentFailed(f"the job's own modules are {len(entries)} files; at most {FILES_LIMIT} may be.")
        size = sum(entry.file_size for entry in entries)
        if size > UNPACKED_LIMIT_BYTES:
            raise EnvironmentFailed(
                f"the job's own modules are {size >> 20} MB unpacked; at most {UNPACKED_LIMIT_BYTES >> 20} MB may be. "
                "Ship data with fallow.put or fallow.File instead."
            )
        folder.mkdir(mode=0o700)
        for entry in entries:
            _write(opened, entry, folder)


def safe_member(name: str) -> PurePosixPath | None:
    """The path of an archive's member within its folder; None where it would lie outside."""
    if "\\" in name or "\0" in name or ":" in name:
        return None
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        return None
    return path


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    member = safe_member(entry.filename)
    if member is None or stat.S_ISLNK(entry.external_attr >> 16):
        raise EnvironmentFailed(f"the job's own modules name {entry.filename!r}, which is no plain file of a folder.")
    target = folder.joinpath(*member.parts)
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(entry) as source, target.open("xb") as file:
        # The size in the directory may lie: copy no more than it says.
        left = entry.file_size
        while left > 0 and (piece := source.read(min(left, 1 << 20))):
            file.write(piece)
            left -= len(piece)


def prune_modules(root: Path) -> None:
    """Remove what crashed agents left, and the folders used longest ago beyond KEPT_LIMIT."""
    kept: list[tuple[float, Path]] = []
    try:
        entries = list(root.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".unpacking-"):
            if not entry.name.endswith(f"-{os.getpid()}"):
                shutil.rmtree(entry, ignore_errors=True)
        else:
            kept.append((entry.stat().st_mtime, entry))
    for _, entry in sorted(kept)[: max(0, len(kept) - KEPT_LIMIT)]:
        shutil.rmtree(entry, ignore_errors=True)
