"""SQLite as a store: WAL, every commit on the disk before it is acknowledged, files for the owner's eyes only."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fallow.store.database import Row, load_statements
from fallow.store.protocol import StoreError, StoreFull, StoreUnavailable

BUSY_TIMEOUT_S = 10
"""How long a write waits for another process that holds the write lock."""

TABLE_ROWS = 64
"""Rows fetched at a time where whole tables are read."""

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
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "temp_store = MEMORY",
    "journal_size_limit = 67108864",
)


class SqliteSession:
    """A connection. The driver begins no transactions by itself: begin() does, with the lock that a write needs."""

    def __init__(
        self, connection: sqlite3.Connection, statements: Mapping[str, str], schema: Sequence[str], where: str
    ) -> None:
        self._connection = connection
        self._where = where
        self._statements = statements
        self._schema = schema
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    def run(self, name: str, values: Mapping[str, Any] = {}) -> list[Row]:
        return self._connection.execute(self._statements[name], values).fetchall()

    def run_each(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[list[Row]]:
        return [self.run(name, values) for values in rows]

    def run_many(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self._connection.executemany(self._statements[name], rows)

    def begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def close(self) -> None:
        self._connection.close()

    def lock_schema(self) -> None:
        """begin() has locked everything."""

    def tables(self) -> set[str]:
        return {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def create_schema(self) -> None:
        for statement in self._schema:
            self._connection.execute(statement)

    def upgrade(self, revision: str = "head") -> None:
        from fallow.store.upgrade import upgrade_sqlite

        upgrade_sqlite(self._connection, revision)

    def begin_snapshot(self) -> None:
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT 1 FROM sqlite_master").fetchall()

    def begin_alone(self) -> None:
        try:
            # The journal's mode can only be changed while no other connection is open.
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            raise StoreError(
                f"another process has {self._where} open: a coordinator, most likely. Stop it (Ctrl-C in the window of "
                "`fallow up`), and run this again."
            ) from error
        self._connection.execute("BEGIN EXCLUSIVE")

    def read_table(self, table: str, columns: Sequence[str]) -> Iterator[Row]:
        cursor = self._connection.execute(f"SELECT {_quoted(columns)} FROM {table}")
        while rows := cursor.fetchmany(TABLE_ROWS):
            yield from rows

    def write_table(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        marks = ", ".join("?" * len(columns))
        self._connection.executemany(f"INSERT INTO {table} ({_quoted(columns)}) VALUES ({marks})", rows)

    def renumber(self, table: str, column: str) -> None:
        """SQLite goes on from the highest number by itself."""


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


class SqliteDatabase:
    """The database file at `path`, made with its folder where they do not exist."""

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)
    upgrades_itself = True
    one_writer = True

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self._statements, self._schema = load_statements("sqlite")

    def exists(self) -> bool:
        return self._path.exists()

    def prepare(self) -> None:
        """SQLite gives its -wal and -shm files the permissions of the database file."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def connect(self) -> SqliteSession:
        connection = sqlite3.connect(
            self._path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        return SqliteSession(connection, self._statements, self._schema, self.where)

    def end_stalled(self) -> None:
        """There is no way; the lock of a process that dies ends with it."""

    def in_words(self, error: Exception) -> StoreError | None:
        return _store_error(error, self._path)


def _store_error(error: BaseException, path: Path) -> StoreError | None:
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
