"""A pool's truth in one file, as of one moment, while its coordinators work on; and back.

The file is a ZIP archive that any engine's store can be made from: a JSON manifest, and a member a table with its rows
in MessagePack. It appears when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from fallow.store.database import Row
from fallow.store.migrate import Report, in_words
from fallow.store.open import database_of
from fallow.store.protocol import SchemaTooNew, StoreError
from fallow.store.schema import HEAD_REVISION, SECRET_MARK, bring_up_to_date, refuse_moved
from fallow.store.upgrade import is_known

MANIFEST = "manifest.json"
EPOCHS_AHEAD = 1 << 20
"""Epochs of a restored store are raised by this: agents and clients have seen those that came after the backup."""

_FORMAT = 1
_CHUNK_BYTES = 1 << 20
_LENGTH_BYTES = 5
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Any, ...]).decode


class TableEntry(msgspec.Struct, frozen=True):
    """A table in the archive: `digest` is a sum over its rows, see transfer.TableSum."""

    name: str
    columns: tuple[str, ...]
    rows: int
    digest: str


class Manifest(msgspec.Struct, frozen=True):
    """What an archive holds. `digests`: the blobs that its jobs need."""

    format: int
    revision: str
    pool_id: str
    created_unix_s: float
    source: str
    tables: tuple[TableEntry, ...]
    digests: tuple[str, ...]


def backup(url: str, file: Path, now_unix_s: float, report: Report = lambda line: None) -> Manifest:
    """Write the archive. Raises StoreError in words; a file of that name is replaced once the new one is whole."""
    from fallow.store.transfer import TABLES, TableSum, rows_of, summed

    database = database_of(url)
    if not database.exists():
        raise StoreError(f"there is no store {database.where}.")
    part = file.with_name(f".{file.name}.part-{os.getpid()}")
    try:
        with in_words(database, of_files=False), contextlib.closing(database.connect()) as session:
            session.begin_snapshot()
            try:
                _check_current(session.tables(), database.where)
                revision = str(session.run("revision")[0][0])
                if revision != HEAD_REVISION:
                    bring_up_to_date(session, database.where, upgrade=False)  # says what to do
                refuse_moved(session, database.where)
                notes: dict[str, str] = dict(session.run("notes"))
                entries = []
                with _created(part) as archive:
                    for name, columns in TABLES.items():
                        result = TableSum()
                        with archive.open(f"tables/{name}", "w", force_zip64=True) as member:
                            for chunk in _chunks(summed(rows_of(session, name, columns), result)):
                                member.write(chunk)
                        entries.append(TableEntry(name, columns, result.rows, result.text))
                        report(f"{name}: {result.rows} rows")
                    digests = tuple(sorted(str(row[0]) for row in session.run("live_digests")))
                    manifest = Manifest(
                        _FORMAT, revision, notes.get("pool_id", ""), now_unix_s, database.where, tuple(entries), digests
                    )
                    archive.writestr(MANIFEST, msgspec.json.encode(manifest))
            finally:
                session.rollback()
        os.replace(part, file)
        _sync_folder(file.parent)
    except OSError as error:
        raise StoreError(f"the backup {file} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return manifest


def read_manifest(file: Path) -> Manifest:
    """What an archive holds. Raises StoreError in words for what is none, or one of a newer Fallow."""
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = msgspec.json.decode(archive.read(MANIFEST), type=Manifest)
    except (OSError, zipfile.BadZipFile, KeyError, msgspec.MsgspecError) as error:
        raise StoreError(
            f"{file} is no backup that can be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if manifest.format != _FORMAT or not is_known(manifest.revision):
        raise SchemaTooNew(
            f"{file} was written by a newer Fallow (schema {manifest.revision}; this one knows up to {HEAD_REVISION}). "
            "Install the newest one: pip install --upgrade fallow"
        )
    return manifest


def restore(file: Path, url: str, report: Report = lambda line: None) -> Manifest:
    """Fill an empty store from an archive, all or nothing, and read it back. Raises StoreError in words."""
    from fallow.store.transfer import TableSum, renumber, sum_of, summed

    manifest = read_manifest(file)
    database = database_of(url)
    with in_words(database):
        database.prepare()
        with contextlib.closing(database.connect()) as session, zipfile.ZipFile(file) as archive:
            session.begin_alone()
            try:
                session.lock_schema()
                if session.tables():
                    bring_up_to_date(session, database.where, upgrade=False)
                    if session.run("notes") or session.run("list_jobs", {"count": 1}):
                        raise StoreError(
                            f"{database.where} holds a pool already. Restore into an empty store: move the file away, "
                            "create another database, or name a schema with ?schema=NAME."
                        )
                elif manifest.revision == HEAD_REVISION:
                    session.create_schema()
                else:
                    session.upgrade(manifest.revision)
                for entry in manifest.tables:
                    read = TableSum()
                    session.write_table(entry.name, entry.columns, summed(_rows(archive, entry, file), read))
                    if (read.rows, read.text) != (entry.rows, entry.digest):
                        raise StoreError(f"{file} is damaged: the rows of {entry.name} are not those of its manifest.")
                    if sum_of(session, entry.name, entry.columns) != read:
                        raise StoreError(f"the table {entry.name} did not arrive as it was sent. Nothing was restored.")
                    report(f"{entry.name}: {entry.rows} rows, checked")
                renumber(session)
                if manifest.revision != HEAD_REVISION:
                    session.upgrade()
                for statement in ("raise_epochs", "raise_terms"):
                    session.run(statement, {"by": EPOCHS_AHEAD})
                session.run("drop_meta", {"note": SECRET_MARK})  # it may have been lost with everything else
            except BaseException:
                session.rollback()
                raise
            session.commit()
    return manifest


def _check_current(present: set[str], where: str) -> None:
    if "alembic_version" not in present:
        raise StoreError(f"{where} is no store of Fallow.")


@contextlib.contextmanager
def _created(part: Path) -> Iterator[zipfile.ZipFile]:
    with part.open("xb") as raw:
        part.chmod(0o600)
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=1) as archive:
            yield archive
        raw.flush()
        os.fsync(raw.fileno())


def _chunks(rows: Iterable[Row]) -> Iterator[bytes]:
    """Rows with their lengths before them."""
    waiting = bytearray()
    for row in rows:
        encoded = _encode(row)
        waiting += len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded
        if len(waiting) >= _CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _rows(archive: zipfile.ZipFile, entry: TableEntry, file: Path) -> Iterator[Row]:
    try:
        with archive.open(f"tables/{entry.name}") as member:
            while length := member.read(_LENGTH_BYTES):
                yield _decode(member.read(int.from_bytes(length, "big")))
    except (KeyError, EOFError, zlib.error, zipfile.BadZipFile, msgspec.DecodeError) as error:
        raise StoreError(f"{file} is damaged: the rows of {entry.name} cannot be read ({error}).") from error


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
