"""The Store over a SQLAlchemy engine. What differs between engines is in an `Engine` (see sqlite.py).

One connection is kept for writing and guarded by a lock; reads take theirs from the engine's pool and see the last
committed state.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy
from sqlalchemy import Connection, Insert, bindparam, select, union, update
from sqlalchemy.exc import SQLAlchemyError

from fallow.model.ids import Digest, Interval, JobId, PoolId
from fallow.model.job import Blob, JobSpec
from fallow.model.node import NodeSpec
from fallow.model.states import JobState
from fallow.store import tables
from fallow.store.protocol import Op, PageIndex, StoredJob, StoreError, StoreFull
from fallow.store.schema import bring_up_to_date
from fallow.store.writes import Writes

ID_PREFIX_MIN = 6
"""Characters of a job's id that find_job needs at least."""

_READ_CHUNK = 500
"""Pages asked for in one statement."""

_decode_spec = msgspec.msgpack.Decoder(JobSpec).decode
_decode_node = msgspec.msgpack.Decoder(NodeSpec).decode
_decode_counts = msgspec.msgpack.Decoder(dict[str, int]).decode
_decode_failed = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_decode_fault = msgspec.msgpack.Decoder(tuple[str, str, str]).decode

_jobs, _inputs, _results = tables.jobs.c, tables.input_pages.c, tables.result_pages.c

_TAKE = (
    update(tables.jobs)
    .where(_jobs.job_id == bindparam("id"))
    .values(epoch=_jobs.epoch + 1, owner=bindparam("new_owner"))
)
_JOB = select(tables.jobs, tables.job_specs.c.spec).join(tables.job_specs, tables.job_specs.c.job == _jobs.number)
_GET = _JOB.where(_jobs.job_id == bindparam("id"))
_LIST = _JOB.order_by(_jobs.number.desc()).limit(bindparam("count"))
_ACTIVE = _LIST.where(_jobs.state.in_([state.value for state in JobState if not state.is_final]))
_NUMBER = select(_jobs.number).where(_jobs.job_id == bindparam("id")).scalar_subquery()

_FIND_ID = select(_jobs.job_id).where(_jobs.job_id == bindparam("text"))
_FIND_NAME = select(_jobs.job_id).where(_jobs.name == bindparam("text")).order_by(_jobs.number.desc()).limit(1)
_FIND_PREFIX = select(_jobs.job_id).where(_jobs.job_id >= bindparam("text"), _jobs.job_id < bindparam("after")).limit(2)

_INPUT_INDEX = (
    select(_inputs.start, _inputs.stop, _inputs.digest, _inputs.size, _inputs.inline)
    .where(_inputs.job == _NUMBER)
    .order_by(_inputs.start)
)
_RESULT_INDEX = (
    select(*(column for column in tables.result_pages.columns if column.name not in ("job", "data")))
    .where(_results.job == _NUMBER)
    .order_by(_results.seq, _results.start)
)
_READ = {
    table.name: select(table.c.start, table.c.digest, table.c.size, table.c.inline, table.c.data).where(
        table.c.job == _NUMBER, table.c.start.in_(bindparam("starts", expanding=True))
    )
    for table in (tables.input_pages, tables.result_pages)
}
_DONE = (
    select(tables.done_intervals.c.start, tables.done_intervals.c.stop)
    .where(tables.done_intervals.c.job == _NUMBER)
    .order_by(tables.done_intervals.c.start)
)
_LOGS = (
    select(tables.logs.c.seq, tables.logs.c.line)
    .where(tables.logs.c.job == _NUMBER, tables.logs.c.seq > bindparam("after"))
    .order_by(tables.logs.c.seq)
    .limit(bindparam("count"))
)
_NODES = select(tables.nodes.c.spec, tables.nodes.c.unix_s, tables.nodes.c.state).order_by(tables.nodes.c.node_id)
_LIVE = union(
    select(_inputs.digest).where(sqlalchemy.text("NOT input_pages.inline")),
    select(_results.digest).where(sqlalchemy.text("NOT result_pages.inline")),
    select(tables.job_blobs.c.digest),
)
_POOL_ID = select(tables.meta.c.value).where(tables.meta.c.name == "pool_id")


class Engine(msgspec.Struct, frozen=True):
    """What differs from one database to the next."""

    engine: sqlalchemy.Engine
    begin_write: Callable[[Connection], None]
    """Begin a transaction that no other writer can get between."""
    insert_ignore: Callable[[Any], Insert]
    """An insert into a table that leaves a row alone that is there."""
    upsert_node: Insert
    store_error: Callable[[BaseException], StoreError | None]
    """In words, if it is the world's fault and not the program's."""
    prepare: Callable[[], None]
    """Before the first connection: make folders and files, check what can be checked."""
    where: str
    """To show to people."""


class SqlStore:
    """A Store. `open()` first; may be opened again after `close()`."""

    def __init__(self, engine: Engine) -> None:
        self._sql = engine
        self._writes = Writes(engine.insert_ignore, engine.upsert_node)
        self._writer: Connection | None = None
        self._lock = threading.RLock()
        self._is_open = False

    def open(self) -> None:
        """See the protocol. Opening an open store does nothing."""
        with self._lock:
            if self._is_open:
                return
            with self._in_words():
                self._sql.prepare()
            with self._writing() as connection:
                current = bring_up_to_date(connection, self._sql.where)
            if not current:
                from fallow.store.upgrade import upgrade

                with self._writing() as connection:
                    upgrade(connection)
            self._is_open = True

    def close(self) -> None:
        with self._lock:
            self._is_open = False
            self._drop_writer()
            self._sql.engine.dispose()

    def pool_id(self, fresh: PoolId) -> PoolId:
        with self._reading() as connection:
            known = connection.execute(_POOL_ID).scalar()
        if known is None:
            with self._writing() as connection:
                connection.execute(self._sql.insert_ignore(tables.meta), {"name": "pool_id", "value": fresh})
                known = connection.execute(_POOL_ID).scalar_one()
        return PoolId(known)

    # ------------------------------------------------------------ writing

    def commit(self, ops: Sequence[Op]) -> None:
        if not ops:
            return
        with self._writing() as connection:
            self._writes.apply(connection, ops)

    def acquire_job(self, job_id: JobId, owner: str) -> StoredJob | None:
        with self._writing() as connection:
            connection.execute(_TAKE, {"id": job_id, "new_owner": owner})
            row = connection.execute(_GET, {"id": job_id}).first()
        return None if row is None else _stored_job(row)

    # ------------------------------------------------------------ reading

    def get_job(self, job_id: JobId) -> StoredJob | None:
        rows = self._read(_GET, id=job_id)
        return _stored_job(rows[0]) if rows else None

    def find_job(self, text: str) -> JobId | None:
        for statement in (_FIND_ID, _FIND_NAME):
            if rows := self._read(statement, text=text):
                return JobId(rows[0].job_id)
        if len(text) < ID_PREFIX_MIN or not text.isascii():
            return None
        rows = self._read(_FIND_PREFIX, text=text, after=text + "\x7f")
        return JobId(rows[0].job_id) if len(rows) == 1 else None

    def list_jobs(self, limit: int, active_only: bool) -> list[StoredJob]:
        return [_stored_job(row) for row in self._read(_ACTIVE if active_only else _LIST, count=max(0, limit))]

    def input_pages(self, job_id: JobId) -> list[PageIndex]:
        return [
            PageIndex(
                seq=number, start=row.start, stop=row.stop, page_start=row.start,
                digest=row.digest, size=row.size, inline=row.inline,
            )
            for number, row in enumerate(self._read(_INPUT_INDEX, id=job_id))
        ]  # fmt: skip

    def result_pages(self, job_id: JobId) -> list[PageIndex]:
        return [
            PageIndex(
                seq=row.seq, start=row.start, stop=row.stop, page_start=row.page_start,
                digest=row.digest, size=row.size, inline=row.inline, failed_count=row.failed_count,
                failed=_decode_failed(row.failed) if row.failed else (),
                fault=_decode_fault(row.fault) if row.fault else None, node=row.node,
            )
            for row in self._read(_RESULT_INDEX, id=job_id)
        ]  # fmt: skip

    def done_intervals(self, job_id: JobId) -> tuple[Interval, ...]:
        return tuple((row.start, row.stop) for row in self._read(_DONE, id=job_id))

    def read_input(self, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        return self._read_pages("input_pages", job_id, starts)

    def read_results(self, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        return self._read_pages("result_pages", job_id, starts)

    def read_logs(self, job_id: JobId, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        rows = self._read(_LOGS, id=job_id, after=after_seq, count=max(0, limit))
        return [(row.seq, row.line) for row in rows]

    def list_nodes(self) -> list[tuple[NodeSpec, float, str]]:
        return [(_decode_node(row.spec), row.unix_s, row.state) for row in self._read(_NODES)]

    def live_digests(self) -> set[str]:
        return {row[0] for row in self._read(_LIVE)}

    # ------------------------------------------------------------ inside

    def _read_pages(self, table: str, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        pages: dict[int, Blob] = {}
        for first in range(0, len(starts), _READ_CHUNK):
            for row in self._read(_READ[table], id=job_id, starts=list(starts[first : first + _READ_CHUNK])):
                pages[row.start] = Blob(Digest(row.digest), row.size, row.data if row.inline else None)
        return pages

    def _read(self, statement: Any, **values: Any) -> Sequence[Any]:
        with self._reading() as connection:
            return connection.execute(statement, values).all()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._in_words(), self._sql.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction of the one writer: committed at the end, or rolled back with the error in words."""
        with self._lock, self._in_words():
            if self._writer is None:
                self._writer = self._sql.engine.connect()
            connection = self._writer
            try:
                self._sql.begin_write(connection)
                yield connection
                connection.commit()
            except SQLAlchemyError as error:
                # Put into words first: what the disk is like is seen best before anything is closed.
                in_words = self._in_words_of(error)
                self._roll_back(connection, trusted=isinstance(in_words, StoreFull))
                if in_words is None:
                    raise
                raise in_words from error
            except BaseException:
                self._roll_back(connection, trusted=True)
                raise

    def _roll_back(self, connection: Connection, trusted: bool) -> None:
        """A connection that is not trusted any more is given up."""
        try:
            connection.rollback()
        except SQLAlchemyError:
            trusted = False
        if not trusted:
            self._drop_writer()

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(SQLAlchemyError):
                writer.invalidate()
            with contextlib.suppress(SQLAlchemyError):
                writer.close()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            in_words = self._in_words_of(error)
            if in_words is None:
                raise
            raise in_words from error

    def _in_words_of(self, error: BaseException) -> StoreError | None:
        return self._sql.store_error(getattr(error, "orig", None) or error)


def _stored_job(row: Any) -> StoredJob:
    return StoredJob(
        spec=_decode_spec(row.spec), state=JobState(row.state), reason=row.reason, owner=row.owner, epoch=row.epoch,
        total=row.total, created_unix_s=row.created_unix_s, ended_unix_s=row.ended_unix_s,
        nodes=_decode_counts(row.nodes), input_error=row.input_error, consumed=row.consumed, retried=row.retried,
    )  # fmt: skip
