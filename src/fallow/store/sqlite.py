"""SQLite as a store: WAL, every commit on the disk before it is acknowledged, files for the owner's eyes only."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy.dialects.sqlite import insert

from fallow.store import tables
from fallow.store.protocol import StoreError, StoreFull, StoreUnavailable
from fallow.store.sql import Engine

BUSY_TIMEOUT_S = 10
"""How long a write waits for another process that holds the write lock."""

_PROBE_BYTES = 1 << 20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WORLD = {
    sqlite3.SQLITE_BUSY: "another process holds it for too long",
    sqlite3.SQLITE_LOCKED: "another process holds it",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check that its folder exists and is yours",
    sqlite3.SQLITE_READONLY: "it may not be written: check its owner and permissions",
    sqlite3.SQLITE_PERM: "it may not be opened: check its owner and permissions",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore a copy, or move it away to begin anew",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database: name another one, or move it away",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
    sqlite3.SQLITE_PROTOCOL: "its lock cannot be had",
}


def sqlite_engine(path: Path) -> Engine:
    """An Engine over the database file at `path`, made with its folder where they do not exist."""
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create("sqlite", database=str(path)),
        pool_size=2,
        max_overflow=30,
        connect_args={"timeout": BUSY_TIMEOUT_S, "cached_statements": 256},
    )

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver begins no transactions by itself: begin_write does it, with the lock that a write needs.
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "temp_store = MEMORY",
            "journal_size_limit = 67108864",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def begin_write(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    nodes = insert(tables.nodes)
    return Engine(
        engine=engine,
        begin_write=begin_write,
        insert_ignore=lambda table: insert(table).on_conflict_do_nothing(),
        upsert_node=nodes.on_conflict_do_update(
            index_elements=["node_id"],
            set_={name: nodes.excluded[name] for name in ("spec", "unix_s", "state")},
        ),
        store_error=lambda error: _store_error(error, path),
        prepare=lambda: _prepare(path),
        where=str(path),
    )


def _prepare(path: Path) -> None:
    """SQLite gives its -wal and -shm files the permissions of the database file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _store_error(error: BaseException, path: Path) -> StoreError | None:
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return StoreUnavailable(f"the store {path} does not answer: too many readers at once")
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return _full(path)
        return StoreUnavailable(f"the store {path} cannot be used: {error.strerror or error}")
    if not isinstance(error, sqlite3.DatabaseError):
        return None
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and not _has_room(path)):
        return _full(path)
    if code in _WORLD:
        return StoreUnavailable(f"the store {path} does not answer: {_WORLD[code]} ({error})")
    return None


def _full(path: Path) -> StoreFull:
    return StoreFull(
        f"the disk under {path} is full, so the pool takes no new work. Nothing is lost; it goes on once there is room."
    )


def _has_room(path: Path) -> bool:
    """Try whether a file as long as the store's may grow. SQLite names some kinds of fullness an I/O error: a
    quota, a limit on the size of files, a -shm file that cannot be mapped."""
    probe = path.with_name(f".{path.name}.probe-{os.getpid()}")
    try:
        sizes = [file.stat().st_size for file in (path, path.with_name(path.name + "-wal")) if file.exists()]
        descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            os.lseek(descriptor, max(sizes, default=0), os.SEEK_SET)
            data = memoryview(bytes(_PROBE_BYTES))
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno not in _NO_ROOM
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return True
