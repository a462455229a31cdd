"""The Store over a SQL database: transactions, connections and what is read. Writing is in writes.py; what differs
from one database to the next is behind `Database` (see sqlite.py).

One session is kept for writing and guarded by a lock; reads take another and see the last committed state.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from fallow.core.sessions import Renewal
from fallow.model.ids import Digest, Interval, JobId, PoolId
from fallow.model.job import Blob, JobSpec
from fallow.model.node import NodeSpec
from fallow.model.states import JobState
from fallow.store.database import Blocked, Conflict, Database, Row, Session
from fallow.store.protocol import (
    Kept,
    Op,
    OwnershipLost,
    PageIndex,
    StoredJob,
    StoreFull,
    StoreUnavailable,
    WrongPool,
)
from fallow.store.schema import SECRET_MARK, bring_up_to_date, refuse_live, refuse_moved, revision_of
from fallow.store.writes import apply

ID_PREFIX_MIN = 6
"""Characters of a job's id that find_job needs at least."""

IDLE_READERS = 4
"""Sessions kept for reading."""

CONFLICTS = 8
"""How often a transaction is begun again because another one was in the way."""

BLOCKED = 2
"""How often it is begun again after it waited for a lock until the time was over."""

LEADER = "matcher"

SESSION_KEPT_S = 7 * 86_400.0
"""Sessions that ended longer ago are forgotten."""

_T = TypeVar("_T")

_decode_spec = msgspec.msgpack.Decoder(JobSpec).decode
_decode_node = msgspec.msgpack.Decoder(NodeSpec).decode
_decode_counts = msgspec.msgpack.Decoder(dict[str, int]).decode
_decode_failed = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_decode_fault = msgspec.msgpack.Decoder(tuple[str, str, str]).decode


class _Writer:
    """A session for writing, and whose turn it is."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.session: Session | None = None

    def drop(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            _close(session)


class SqlStore:
    """A Store. `open()` first; may be opened again after `close()`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors: tuple[type[Exception], ...] = (*database.errors, OSError)
        self._jobs = _Writer()
        # A session is renewed beside commits, however long those wait for locks.
        self._coordination = self._jobs if database.one_writer else _Writer()
        self._idle_readers: list[Session] = []
        self._readers_lock = threading.Lock()
        self._is_open = False

    def open(self) -> None:
        """See the protocol. Opening an open store does nothing."""
        with self._jobs.lock:
            if self._is_open:
                return
            with self._in_words():
                self._database.prepare()
            try:
                with self._writing() as session:
                    bring_up_to_date(session, self._database.where, self._database.upgrades_itself)
                    refuse_moved(session, self._database.where)
            except BaseException:
                self._jobs.drop()
                raise
            self._is_open = True

    def upgrade(self) -> tuple[str, str]:
        """Bring the schema up to date, whatever the engine's policy: (revision before, after). Raises StoreError
        while a coordinator is at work."""
        where = self._database.where
        with self._jobs.lock:
            with self._in_words():
                self._database.prepare()
            with self._writing() as session:
                session.lock_schema()
                there = session.tables()
                before = revision_of(session) if "alembic_version" in there else ""
                if "sessions" in there:
                    refuse_live(session, where, "upgraded")
                bring_up_to_date(session, where, upgrade=True)
            with self._writing() as session:
                return before, revision_of(session)

    def close(self) -> None:
        with self._jobs.lock, self._coordination.lock:
            self._is_open = False
            self._jobs.drop()
            self._coordination.drop()
            while self._idle_readers:
                _close(self._idle_readers.pop())

    def pool_id(self, fresh: PoolId, expected: PoolId | None = None) -> PoolId:
        known = self._read("pool_id")
        if not known:

            def put(session: Session) -> list[Row]:
                session.run("put_meta", {"name": "pool_id", "value": fresh})
                return session.run("pool_id")

            known = self._write(put)
        if expected is not None and known[0][0] != expected:
            raise WrongPool(
                f"{self._database.where} belongs to the pool {known[0][0]}, and this coordinator to {expected}. A "
                "store holds one pool: name that pool's store, or begin with an empty database (one database has "
                "room for several pools, each with its own ?schema=NAME)."
            )
        return PoolId(known[0][0])

    def knows_secret(self, mark: str, is_own: bool) -> bool:
        known: dict[str, str] = dict(self._read("notes"))
        before = known.get(SECRET_MARK)
        if before == mark:
            return True
        if before is not None and not is_own:
            return False

        def put(session: Session) -> None:
            if before is not None:
                session.run("drop_meta", {"note": SECRET_MARK})
            session.run("put_meta", {"name": SECRET_MARK, "value": mark})

        self._write(put)
        return True

    # ------------------------------------------------------------ writing

    def commit(self, ops: Sequence[Op]) -> None:
        if ops:
            self._write(lambda session: apply(session, ops))

    def acquire_job(self, job_id: JobId, owner: str, force: bool = True) -> StoredJob | None:
        def take(session: Session) -> list[Row]:
            values = {"id": job_id, "new_owner": owner}
            before = session.run("lock_job", {"id": job_id})
            if force:
                session.run("take_job", values)
            else:
                session.run("take_free_job", {**values, "same_owner": owner})
            rows = session.run("get_job", {"id": job_id})
            return rows if rows and before and (rows[0][2], rows[0][3]) == (owner, before[0][1] + 1) else []

        rows = self._write(take)
        return _stored_job(rows[0]) if rows else None

    def release_job(self, job_id: JobId, epoch: int, to: str = "", owner: str = "") -> None:
        def release(session: Session) -> None:
            held = session.run("lock_job", {"id": job_id})
            if [row[1] for row in held] != [epoch] or owner not in ("", held[0][0]):
                raise OwnershipLost([job_id])
            session.run("release_job", {"id": job_id, "held_epoch": epoch, "new_owner": to})

        self._write(release)

    # ------------------------------------------------------------ coordinators

    def renew_session(self, owner: str, ttl_s: float, info: str = "", anew: bool = False) -> int:
        def renew(session: Session) -> int:
            if anew:
                session.run("end_leadership", {"ended_owner": owner})
            session.run("renew_session", {"owner": owner, "ttl_s": ttl_s, "info": info, "anew": int(anew)})
            epoch: int = session.run("session", {"owner": owner})[0][0]
            if epoch == 1:
                session.run("forget_sessions", {"kept_s": SESSION_KEPT_S})
            return epoch

        return self._write(renew, self._coordination)

    def renewals(self) -> list[Renewal]:
        return [Renewal(*row) for row in self._read("sessions")]

    def end_session(self, owner: str) -> None:
        def end(session: Session) -> None:
            session.run("end_session", {"ended_owner": owner})
            session.run("end_leadership", {"ended_owner": owner})

        self._write(end, self._coordination)

    def end_silent(self, renewal: Renewal) -> bool:
        def end(session: Session) -> bool:
            session.run("end_silent", {"ended_owner": renewal.owner, "stamp": renewal.stamp})
            ended = renewal.owner not in [row[0] for row in session.run("sessions")]
            if ended:
                session.run("end_leadership", {"ended_owner": renewal.owner})
            return ended

        return self._write(end, self._coordination)

    def acquire_leadership(self, owner: str, role: str = LEADER, alone: bool = False) -> int | None:
        def lead(session: Session) -> list[Row]:
            session.run("lead_alone" if alone else "lead", {"role": role, "owner": owner})
            return session.run("leader", {"role": role})

        leaders = self._write(lead, self._coordination)
        return next((term for leader, term in leaders if leader == owner), None)

    def keep_session(self, owner: str, ttl_s: float, info: str, limit: int) -> Kept:
        if self._database.one_writer:
            epoch, term = self.renew_session(owner, ttl_s, info), self.acquire_leadership(owner)
            others = [each for each in self.renewals() if each.owner != owner]
            return Kept(epoch, term, self.jobs_of_dead_owners(limit), others)
        values = {"owner": owner, "ttl_s": ttl_s, "info": info, "anew": 0, "role": LEADER, "count": max(0, limit)}

        rows = self._write(lambda session: session.run("keep_session", values), self._coordination, whole=False)
        epoch, term, jobs, owners, *columns = rows[0]
        others = [Renewal(*row) for row in zip(*columns, strict=True)]
        return Kept(epoch, term, list(zip(jobs, owners, strict=True)), others)

    def jobs_of_dead_owners(self, limit: int) -> list[tuple[JobId, str]]:
        return [(JobId(row[0]), row[1]) for row in self._read("jobs_of_dead_owners", count=max(0, limit))]

    def unread_of_dead_owners(self, after_unix_s: float, limit: int) -> list[JobId]:
        rows = self._read("unread_of_dead_owners", after=after_unix_s, count=max(0, limit))
        return [JobId(row[0]) for row in rows]

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

    def inputs_stop(self, job_id: JobId) -> int:
        rows = self._read("inputs_stop", id=job_id)
        return int(rows[0][0]) if rows else 0

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

    def checkpoints(self, job_id: JobId) -> dict[int, Blob]:
        return {
            task: Blob(Digest(digest), size, data if inline else None)
            for task, digest, size, inline, data in self._read("checkpoints", id=job_id)
        }

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

    def live_among(self, digests: Sequence[str]) -> set[str]:
        if not digests:
            return set()
        return {row[0] for row in self._read("live_among", digests=msgspec.json.encode(list(digests)).decode())}

    # ------------------------------------------------------------ inside

    def _read_pages(self, statement: str, job_id: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        rows = self._read(statement, id=job_id, starts=msgspec.json.encode(list(starts)).decode()) if starts else []
        return {
            start: Blob(Digest(digest), size, data if inline else None) for start, digest, size, inline, data in rows
        }

    def _read(self, statement: str, **values: Any) -> list[Row]:
        with self._in_words():
            while self._idle_readers:
                try:
                    session = self._idle_readers.pop()
                except IndexError:
                    break
                try:
                    return self._run_and_keep(session, statement, values)
                except self._errors as error:
                    # The server may have restarted since the session was last used.
                    if not isinstance(self._database.in_words(error), StoreUnavailable):
                        raise
            return self._run_and_keep(self._database.connect(), statement, values)

    def _run_and_keep(self, session: Session, statement: str, values: dict[str, Any]) -> list[Row]:
        try:
            rows = session.run(statement, values)
        except BaseException:
            _close(session)
            raise
        with self._readers_lock:
            kept = self._is_open and len(self._idle_readers) < IDLE_READERS
            if kept:
                self._idle_readers.append(session)
        if not kept:
            _close(session)
        return rows

    def _write(self, work: Callable[[Session], _T], writer: _Writer | None = None, whole: bool = True) -> _T:
        """Run it in a transaction (`whole` false: each statement is one), again where another one was in the way."""
        blocked = 0
        for _ in range(CONFLICTS):
            try:
                with self._writing(writer, whole) as session:
                    done = work(session)
                return done
            except Blocked:
                blocked += 1
                if blocked > BLOCKED:
                    raise
                with self._in_words():
                    self._database.end_stalled()
            except Conflict:
                continue
        with self._writing(writer, whole) as session:
            done = work(session)
        return done

    @contextlib.contextmanager
    def _writing(self, writer: _Writer | None = None, whole: bool = True) -> Iterator[Session]:
        """A transaction: committed at the end, or rolled back with the error in words. `whole` false: none of its
        own, where a single statement is one."""
        writer = writer or self._jobs
        with writer.lock, self._in_words():
            if writer.session is None:
                writer.session = self._database.connect()
            session = writer.session
            try:
                if whole:
                    session.begin()
                yield session
                if whole:
                    session.commit()
            except self._database.errors as error:
                # Put into words first: what the disk is like is seen best before anything is closed.
                in_words = self._database.in_words(error)
                self._roll_back(writer, trusted=isinstance(in_words, (StoreFull, Conflict)))
                if in_words is None:
                    raise
                raise in_words from error
            except BaseException:
                self._roll_back(writer, trusted=True)
                raise

    def _roll_back(self, writer: _Writer, trusted: bool) -> None:
        """A session that is not trusted any more is given up."""
        assert writer.session is not None
        try:
            writer.session.rollback()
        except self._database.errors:
            trusted = False
        if not trusted:
            writer.drop()

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
    state, reason, owner, epoch, total, created, ended, nodes, input_error, consumed, retried, failed = row[:12]
    wasted_s, spec = row[12:]
    return StoredJob(
        spec=_decode_spec(spec), state=JobState(state), reason=reason, owner=owner, epoch=epoch, total=total,
        created_unix_s=created, ended_unix_s=ended, nodes=_decode_counts(nodes), input_error=input_error,
        consumed=consumed, retried=retried, failed=failed, wasted_s=wasted_s,
    )  # fmt: skip
