"""PostgreSQL as a store: any number of coordinators over one database.

A commit locks the rows of the jobs that it writes, by their ids in order, and so proves ownership inside its own
transaction. Its statements travel in libpq's pipeline: two round trips a commit, however many operations it has.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrDumper

from fallow.store.database import Blocked, Conflict, Row, load_statements
from fallow.store.protocol import StoreError, StoreFull, StoreUnavailable

CONNECT_TIMEOUT_S = 10
SILENT_AFTER_MS = 10_000
"""A server that acknowledges nothing for so long is given up."""
TABLE_ROWS = 64
"""Rows fetched at a time where whole tables are read."""
LOCK_TIMEOUT_MS = 2_000
STALLED_AFTER_MS = 2_000
"""A transaction that lasts longer, and for whose next statement the server waits, was left by a coordinator that was
stopped or cut off. Whoever waits for its locks ends it. (The server's own limit for idle transactions does not see
those that were stopped in the middle of a pipeline.)"""

_APPLICATION = "fallow"
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_LOCK_NUMBER = 0x0FA1_10F5
"""Of the advisory lock that guards the schema: one a database, so schemas of several pools wait for each other."""

_CONNECT_WORDS = (
    ("password authentication failed", "the user name or the password is wrong", StoreError),
    ("no password supplied", "it wants a password: postgresql://USER:PASSWORD@HOST/DATABASE", StoreError),
    ("role .* does not exist", "it has no such user", StoreError),
    ("database .* does not exist", "there is no database of that name: create it first (createdb NAME)", StoreError),
    ("no pg_hba.conf entry", "its pg_hba.conf does not let this machine in", StoreError),
    ("permission denied for database", "this user may not connect to that database", StoreError),
    ("certificate|SSL", "the encrypted connection failed", StoreError),
    ("too many (clients|connections)|remaining connection slots", "it has no connection left", StoreUnavailable),
    ("starting up|shutting down|recovery", "it is starting, stopping or recovering", StoreUnavailable),
    ("invalid (integer|port|value)", "its URL holds a value that is none", StoreError),
    ("refused|No such file", "no server listens there", StoreUnavailable),
    ("resolve|translate host name|Name or service", "the name of its host is not known", StoreUnavailable),
    ("timeout|timed out|unreachable|No route", "its host does not answer", StoreUnavailable),
)
_STATE_WORDS = {
    "25006": "it is a read-only standby: name the primary",
    "57P01": "it was shut down",
    "57P02": "it crashed and restarts",
    "57P03": "it is starting or stopping",
    "25P03": "a commit took too long to be sent, and was given up",
    "53200": "it is out of memory",
    "53300": "it has no connection left",
    "53400": "a limit of its configuration was reached",
    "58030": "its disk reports an error",
    "XX001": "its data is damaged: restore a backup",
    "XX002": "an index of its data is damaged: REINDEX it, or restore a backup",
}
_DENIED_WORDS = {
    "42501": "this user may not do that: it must own the schema and its tables",
    "3D000": "there is no database of that name",
    "3F000": "there is no schema of that name",
    "42P01": "a table is missing: the schema was changed by hand, or belongs to something else",
    "42703": "a column is missing: the schema was changed by hand, or belongs to something else",
}


class _Text(StrDumper):
    """PostgreSQL's text holds no NUL, and nothing that is not Unicode; job names and error texts may."""

    def dump(self, obj: str) -> bytes:
        if "\0" in obj:
            obj = obj.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return obj.encode("utf-8", "backslashreplace")


class PostgresSession:
    """A connection in autocommit mode: begin() and commit() say BEGIN and COMMIT."""

    def __init__(
        self, connection: psycopg.Connection[Any], statements: Mapping[str, str], schema: Sequence[str], name: str
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._schema = schema
        self._name = name
        self._pipeline: contextlib.AbstractContextManager[Any] | None = None

    def run(self, name: str, values: Mapping[str, Any] = {}) -> list[Row]:
        text = self._statements[name]
        cursor = self._connection.cursor(binary=True)
        cursor.execute(text, values)
        return cursor.fetchall() if text.startswith(("SELECT", "WITH")) else []

    def run_each(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[list[Row]]:
        cursors = [self._connection.cursor(binary=True) for _ in rows]
        for cursor, values in zip(cursors, rows, strict=True):
            cursor.execute(self._statements[name], values)
        return [cursor.fetchall() for cursor in cursors]

    def run_many(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if len(rows) == 1:
            self._connection.execute(self._statements[name], rows[0])
        elif rows:
            self._connection.cursor().executemany(self._statements[name], rows)

    def begin(self) -> None:
        self._pipeline = self._connection.pipeline()
        self._pipeline.__enter__()
        self._connection.execute("BEGIN")

    def commit(self) -> None:
        self._connection.execute("COMMIT")
        self._leave_pipeline()

    def rollback(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._leave_pipeline()
        # The driver's own, not a statement: it also forgets statements whose preparation was cut short in the pipeline.
        self._connection.rollback()

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._leave_pipeline()
        self._connection.close()

    def lock_schema(self) -> None:
        self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_NUMBER,))

    def tables(self) -> set[str]:
        cursor = self._connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        return {row[0] for row in cursor.fetchall()}

    def create_schema(self) -> None:
        for statement in self._schema:
            self._connection.execute(statement)

    def upgrade(self, revision: str = "head") -> None:
        from fallow.store.upgrade import upgrade_postgresql

        self._leave_pipeline()
        upgrade_postgresql(self._connection, revision)

    def begin_snapshot(self) -> None:
        self._connection.execute("SELECT set_config('application_name', 'fallow store', false)")
        self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def begin_alone(self) -> None:
        # Under another name, so that no coordinator takes it for one of its own that has stopped.
        self._connection.execute("SELECT set_config('application_name', 'fallow store', false)")
        self._connection.execute("BEGIN")
        self.lock_schema()

    def read_table(self, table: str, columns: Sequence[str]) -> Iterator[Row]:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        with self._connection.cursor(name="fallow_table", binary=True) as cursor:
            cursor.itersize = TABLE_ROWS
            cursor.execute(sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(table)))
            yield from cursor

    def write_table(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        with self._connection.cursor() as cursor:
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), names)) as copy:
                for row in rows:
                    copy.write_row(row)

    def renumber(self, table: str, column: str) -> None:
        self._connection.execute(
            sql.SQL("SELECT setval(pg_get_serial_sequence({0}, {1}), max({2})) FROM {3} HAVING max({2}) > 0").format(
                sql.Literal(table), sql.Literal(column), sql.Identifier(column), sql.Identifier(table)
            )
        )

    @property
    def raw(self) -> psycopg.Connection[Any]:
        """For what moves whole tables."""
        return self._connection

    def _leave_pipeline(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.__exit__(None, None, None)


class PostgresDatabase:
    """`url`: postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with libpq's parameters, and `schema` for a pool that
    shares its database with others. Raises StoreError for what cannot be read."""

    errors: tuple[type[Exception], ...] = (psycopg.Error,)
    upgrades_itself = False
    one_writer = False

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.schema = parameters.pop("schema", "public")
        # Never a password: it may stand in the URL's parameters too.
        self.where = f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if self.schema != "public":
            self.where += f"?schema={self.schema}"
        if not _SCHEMA.fullmatch(self.schema):
            raise StoreError(
                f"{self.schema!r} cannot name a schema: use lower-case letters, digits and underscores, such as pool_b."
            )
        if not parts.path.strip("/"):
            raise StoreError(
                f"{self.where!r} names no database. Expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
            )
        self._conninfo = f"postgresql://{parts.netloc}{parts.path}?{urlencode(parameters, quote_via=quote)}"
        try:
            psycopg.conninfo.conninfo_to_dict(self._conninfo)
        except psycopg.ProgrammingError as error:
            words = str(error).strip().replace(self._conninfo, self.where)
            raise StoreError(f"{self.where!r} cannot be read as a PostgreSQL URL: {words}") from None
        self._statements, self._tables = load_statements("postgresql")

    def exists(self) -> bool:
        return True

    def prepare(self) -> None:
        """Make the schema of a pool that has one of its own."""
        if self.schema != "public":
            with self._connect() as connection, connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_NUMBER,))
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self.schema}".encode())

    def connect(self) -> PostgresSession:
        return PostgresSession(self._connect(), self._statements, self._tables, self.schema)

    def end_stalled(self) -> None:
        with self._connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND usename = current_user AND application_name = %s AND wait_event = 'ClientRead' "
                "AND xact_start < clock_timestamp() - make_interval(secs => %s)",
                (_APPLICATION, STALLED_AFTER_MS / 1000),
            )

    def in_words(self, error: Exception) -> StoreError | None:
        return _store_error(error, self.where)

    def _connect(self) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] = psycopg.connect(
            self._conninfo,
            autocommit=True,
            prepare_threshold=2,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=_APPLICATION,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=SILENT_AFTER_MS,
            client_encoding="utf8",
        )
        connection.adapters.register_dumper(int, Int8BinaryDumper)  # one plan a statement, not one a size of number
        connection.adapters.register_dumper(str, _Text)
        settings = {
            "search_path": self.schema,
            "lock_timeout": f"{LOCK_TIMEOUT_MS}ms",
        }
        wanted = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
        # What was acknowledged is on the disk, whatever the server's default; replicas are the operator's choice.
        commits = "synchronous_commit"
        durable = f"CASE current_setting('{commits}') WHEN 'off' THEN set_config('{commits}', 'on', false) END"
        connection.execute(f"SELECT {wanted}, {durable}".encode())
        return connection


def _store_error(error: Exception, where: str) -> StoreError | None:
    if isinstance(error, OSError):
        return StoreUnavailable(f"the store {where} does not answer: {error.strerror or error}")
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    words = " ".join(str(error).split())
    if isinstance(error, (pg.DeadlockDetected, pg.SerializationFailure)) or (
        isinstance(error, pg.UniqueViolation) and error.diag.constraint_name == "jobs_by_id"
    ):
        return Conflict(f"the store {where} is busy: other coordinators write the same rows ({words})")
    if isinstance(error, pg.LockNotAvailable):
        return Blocked(f"the store {where} does not answer: another coordinator holds the same rows ({words})")
    if isinstance(error, pg.DiskFull):
        return StoreFull(
            f"the disk of the store {where} is full, so the pool takes no new work. Nothing is lost; it goes on once "
            "there is room."
        )
    if state in _STATE_WORDS:
        return StoreUnavailable(f"the store {where} does not answer: {_STATE_WORDS[state]} ({words})")
    if state in _DENIED_WORDS:
        return StoreError(f"the store {where} cannot be used: {_DENIED_WORDS[state]} ({words})")
    if state[:2] in ("08", "57", "28"):
        return StoreUnavailable(f"the store {where} does not answer: {words}")
    if not state and isinstance(error, psycopg.OperationalError):
        for pattern, meaning, kind in _CONNECT_WORDS:
            if re.search(pattern, words, re.IGNORECASE):
                return kind(f"the store {where} does not answer: {meaning} ({words})")
        return StoreUnavailable(f"the store {where} does not answer: the connection was lost ({words})")
    return None
