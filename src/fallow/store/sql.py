"""The Store over a SQL database: transactions, connections and what is read. Writing is in writes.py; what differs
from one database to the next is behind `Database` (see sqlite.py).

One session is kept for writing and guarded by a lock; reads take another and see the last committed state.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from fallow.model.ids import Digest, Interval, JobId, PoolId
from fallow.model.job import Blob, JobSpec
from fallow.model.node import NodeSpec
from fallow.model.states import JobState
from fallow.store.database import Database, Row, Session
from fallow.store.protocol import Op, PageIndex, StoredJob, StoreFull
from fallow.store.schema import bring_up_to_date
from fallow.store.writes import apply

ID_PREFIX_MIN = 6
"""Characters of a job's id that find_job needs at least."""

IDLE_READERS = 4
"""Sessions kept for reading."""

_decode_spec = msgspec.msgpack.Decoder(JobSpec).decode
_decode_node = msgspec.msgpack.Decoder(NodeSpec).decode
_decode_counts = msgspec.msgpack.Decoder(dict[str, int]).decode
_decode_failed = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_decode_fault = msgspec.msgpack.Decoder(tuple[str, str, str]).decode


class SqlStore:
    """A Store. `open()` first; may be opened again after `close()`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors: tuple[type[Exception], ...] = (*database.errors, OSError)
        self._writer: Session | None = None
        self._write_lock = threading.RLock()
        self._idle_readers: list[Session] = []
        self._is_open = False

    def open(self) -> None:
        """See the protocol. Opening an open store does nothing."""
        with self._write_lock:
            if self._is_open:
                return
            with self._in_words():
                self._database.prepare()
            with self._writing() as session:
                bring_up_to_date(session, self._database.where)
            self._is_open = True

    def close(self) -> None:
        with self._write_lock:
            self._is_open = False
            self._drop_writer()
            while self._idle_readers:
                _close(self._idle_readers.pop())

    def pool_id(self, fresh: PoolId) -> PoolId:
        known = self._read("pool_id")
        if not known:
            with self._writing() as session:
                session.run("put_meta", {"name": "pool_id", "value": fresh})
                known = session.run("pool_id")
        return PoolId(known[0][0])

    # ------------------------------------------------------------ writing

    def commit(self, ops: Sequence[Op]) -> None:
        if not ops:
            return
        with self._writing() as session:
            apply(session, ops)

    def acquire_job(self, job_id: JobId, owner: str) -> StoredJob | None:
        with self._writing() as session:
            session.run("take_job", {"id": job_id, "new_owner": owner})
            rows = session.run("get_job", {"id": job_id})
        return _stored_job(rows[0]) if rows else None

    # ------------------------------------------------------------ reading

    def get_job(self, job_id: JobId) -> StoredJob | None:
        rows = self._read("get_job", id=job_id)
        return _stored_job(rows[0]) if rows else None

    def find_job(self, text: str) -> JobId | None:
        for statement in ("find_by_id", "find_by_name"):
            if rows := self._read(statement, text=text):
                return JobId(rows[0][0])
        if len(text) < ID_PREFIX_MIN or not text.isascii():
            return None
        rows = self._read("find_by_prefix", text=text, after=text + "\x7f")
        return JobId(rows[0][0]) if len(rows) == 1 else None

    def list_jobs(self, limit: int, active_only: bool) -> list[StoredJob]:
        statement = "list_active_jobs" if active_only else "list_jobs"
        return [_stored_job(row) for row in self._read(statement, count=max(0, limit))]

    def input_pages(self, job_id: JobId) -> list[PageIndex]:
        return [
            PageIndex(number, start, stop, start, digest, size, bool(inline))
            for number, (start, stop, digest, size, inline) in enumerate(self._read("input_index", id=job_id))
        ]

    def result_pages(self, job_id: JobId) -> list[PageIndex]:
        return [
            PageIndex(
                seq, start, stop, page_start, digest, size, bool(inline), failed_count,
                _decode_failed(failed) if failed else (), _decode_fault(fault) if fault else None, node,
            )
            for seq, start, stop, page_start, digest, size, inline, failed_count, failed, fault, node
            in self._read("result_index", id=job_id)
        ]  # fmt: skip

    def done_intervals(self, job_id: JobId) -> tuple[Interval, ...]:
        return tuple((start, stop) for start, stop in self._read("done_intervals", id=job_id))

    def read_input(self, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        return self._read_pages("read_input", job_id, starts)

    def read_results(self, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        return self._read_pages("read_results", job_id, starts)

    def read_logs(self, job_id: JobId, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        rows = self._read("read_logs", id=job_id, after=after_seq, count=max(0, limit))
        return [(seq, line) for seq, line in rows]

    def list_nodes(self) -> list[tuple[NodeSpec, float, str]]:
        return [(_decode_node(spec), unix_s, state) for spec, unix_s, state in self._read("list_nodes")]

    def live_digests(self) -> set[str]:
        return {row[0] for row in self._read("live_digests")}

    # ------------------------------------------------------------ inside

    def _read_pages(self, statement: str, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        rows = self._read(statement, id=job_id, starts=msgspec.json.encode(list(starts)).decode()) if starts else []
        return {
            start: Blob(Digest(digest), size, data if inline else None) for start, digest, size, inline, data in rows
        }

    def _read(self, statement: str, **values: Any) -> list[Row]:
        with self._in_words():
            try:
                session = self._idle_readers.pop()
            except IndexError:
                session = self._database.connect()
            try:
                rows = session.run(statement, values)
            except BaseException:
                _close(session)
                raise
            if self._is_open and len(self._idle_readers) < IDLE_READERS:
                self._idle_readers.append(session)
            else:
                _close(session)
            return rows

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Session]:
        """A transaction of the one writer: committed at the end, or rolled back with the error in words."""
        with self._write_lock, self._in_words():
            if self._writer is None:
                self._writer = self._database.connect()
            session = self._writer
            try:
                session.begin()
                yield session
                session.commit()
            except self._database.errors as error:
                # Put into words first: what the disk is like is seen best before anything is closed.
                in_words = self._database.in_words(error)
                self._roll_back(session, trusted=isinstance(in_words, StoreFull))
                if in_words is None:
                    raise
                raise in_words from error
            except BaseException:
                self._roll_back(session, trusted=True)
                raise

    def _roll_back(self, session: Session, trusted: bool) -> None:
        """A session that is not trusted any more is given up."""
        try:
            session.rollback()
        except self._database.errors:
            trusted = False
        if not trusted:
            self._drop_writer()

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            _close(writer)

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            in_words = self._database.in_words(error)
            if in_words is None:
                raise
            raise in_words from error


def _close(session: Session) -> None:
    with contextlib.suppress(Exception):
        session.close()


def _stored_job(row: Row) -> StoredJob:
    state, reason, owner, epoch, total, created, ended, nodes, input_error, consumed, retried, spec = row
    return StoredJob(
        spec=_decode_spec(spec), state=JobState(state), reason=reason, owner=owner, epoch=epoch, total=total,
        created_unix_s=created, ended_unix_s=ended, nodes=_decode_counts(nodes), input_error=input_error,
        consumed=consumed, retried=retried,
    )  # fmt: skip
