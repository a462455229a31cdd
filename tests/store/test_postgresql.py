"""PostgreSQL as a store: the common suite, and what is its own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from fallow.model.ids import Digest, PoolId
from fallow.model.job import Blob
from fallow.store.database import Session
from fallow.store.open import open_store
from fallow.store.protocol import (
    CreateJob,
    OwnershipLost,
    SchemaTooNew,
    SchemaTooOld,
    SetJob,
    Store,
    StoreError,
    StoreUnavailable,
)
from fallow.store.schema import HEAD_REVISION
from fallow.store.upgrade import upgrade_store
from fallow.store.writes import apply
from tests.engines.postgres import Postgres, free_port
from tests.store.conformance import StoreConformance, give, job_id, put, spec
from tests.store.coordination import CoordinationConformance, wait_for


def schema_for(folder: Path) -> str:
    """A schema of its own for each folder: a fresh store."""
    return "s" + hashlib.sha256(str(folder).encode()).hexdigest()[:20]


@pytest.mark.slow
class TestPostgresql(CoordinationConformance, StoreConformance):
    @pytest.fixture(autouse=True)
    def server(self, postgres: Postgres) -> None:
        self.postgres = postgres

    def open_at(self, folder: Path) -> Store:
        return open_store(self.postgres.url(schema_for(folder)))


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("a%20secret", "hunter2"), "user name or the password is wrong"),
        (lambda url: url.replace("fallow:", "nobody_at_all:"), "user name or the password is wrong|no such user"),
        (lambda url: url.replace("/postgres", "/missing"), "no database of that name: create it first"),
        (lambda url: url.rsplit(":", 1)[0] + f":{free_port()}/postgres", "no server listens there"),
        (lambda url: url.replace("127.0.0.1", "no-such-host.invalid"), "name of its host is not known"),
        (lambda url: url.replace("/postgres", ""), "names no database"),
        (lambda url: url.rsplit(":", 1)[0] + ":port/postgres", "holds a value that is none.*port"),
        (lambda url: url + "?colour=blue", "cannot be read as a PostgreSQL URL.*colour"),
        (lambda url: url + "?schema=Bobby';--", "cannot name a schema"),
    ],
)
@pytest.mark.slow
def test_what_is_wrong_is_said_in_words(postgres: Postgres, change: Callable[[str], str], words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        open_store(change(postgres.url()))
    for secret in ("secret", "hunter2"):
        assert secret not in str(caught.value)


@pytest.mark.slow
def test_a_database_of_somebody_else_is_refused(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA recipes")
        connection.execute("CREATE TABLE recipes.recipes (name TEXT)")
    with pytest.raises(StoreError, match="not of Fallow"):
        open_store(postgres.url("recipes"))


@pytest.mark.slow
def test_a_user_who_may_not_write_is_told_so(postgres: Postgres, tmp_path: Path) -> None:
    store = open_store(postgres.url(schema_for(tmp_path)))
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE USER guest PASSWORD 'guest'")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema_for(tmp_path)} TO guest".encode())
    with pytest.raises(StoreError, match="may not do that"):
        open_store(postgres.url(schema_for(tmp_path)).replace("fallow:a%20secret%20of%20tests", "guest:guest"))
    store.close()


@pytest.mark.slow
def test_two_pools_share_a_database_in_schemas_of_their_own(postgres: Postgres) -> None:
    first, second = open_store(postgres.url("pool_a")), open_store(postgres.url("pool_b"))
    assert first.pool_id(PoolId("pool-a")) == "pool-a"
    assert second.pool_id(PoolId("pool-b")) == "pool-b"
    job = job_id()
    first.commit([CreateJob(spec(job), "me", 1.0)])
    assert second.get_job(job) is None
    first.close()
    second.close()


@pytest.mark.slow
def test_coordinators_that_start_together_make_one_schema(postgres: Postgres, tmp_path: Path) -> None:
    errors: list[BaseException] = []
    ids: set[str] = set()

    def start(number: int) -> None:
        try:
            store = open_store(postgres.url(schema_for(tmp_path)))
            ids.add(store.pool_id(PoolId(f"pool-{number}")))
            store.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(ids) == 1


@pytest.mark.slow
def test_text_that_postgresql_cannot_hold_is_kept_readable(postgres: Postgres, tmp_path: Path) -> None:
    store = open_store(postgres.url(schema_for(tmp_path)))
    job = job_id()
    store.commit([CreateJob(spec(job, "a\0b"), "me", 1.0), SetJob(job, 1, reason="half a \udcff character")])
    found = store.get_job(job)
    assert found is not None
    assert (found.spec.name, found.reason) == ("a\0b", "half a \\udcff character")
    assert store.find_job("a\0b") == job
    store.close()


# ---------------------------------------------------------------- schemas


def schema_of(postgres: Postgres, schema: str) -> list[tuple[object, ...]]:
    with psycopg.connect(postgres.url()) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default IS NULL "
            "FROM information_schema.columns WHERE table_schema = %s ORDER BY table_name, ordinal_position",
            (schema,),
        ).fetchall()
        indexes = connection.execute(
            "SELECT tablename, indexname, replace(indexdef, %s || '.', '') FROM pg_indexes WHERE schemaname = %s "
            "ORDER BY indexname",
            (schema, schema),
        ).fetchall()
        keys = connection.execute(
            "SELECT conrelid::regclass::text, replace(pg_get_constraintdef(pg_constraint.oid), %s || '.', '') "
            "FROM pg_constraint JOIN pg_namespace ON pg_namespace.oid = connamespace WHERE nspname = %s",
            (schema, schema),
        ).fetchall()
    return [*columns, *indexes, *sorted((str(table).split(".")[-1], words) for table, words in keys)]


@pytest.mark.slow
def test_a_fresh_schema_equals_the_migrations(postgres: Postgres) -> None:
    open_store(postgres.url("fresh")).close()
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA migrated")
        connection.execute("CREATE TABLE migrated.alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    with pytest.raises(SchemaTooOld, match="fallow store upgrade"):
        open_store(postgres.url("migrated"))
    assert upgrade_store(postgres.url("migrated")) == ("", HEAD_REVISION)
    assert upgrade_store(postgres.url("migrated")) == (HEAD_REVISION, HEAD_REVISION)
    migrated = schema_of(postgres, "migrated")
    assert [row for row in migrated if row[0] != "alembic_version"]
    fresh = [row for row in schema_of(postgres, "fresh") if row[0] != "alembic_version"]
    assert [row for row in migrated if row[0] != "alembic_version"] == fresh
    store = open_store(postgres.url("migrated"))
    store.commit([CreateJob(spec(job_id()), "me", 1.0)])
    store.close()


@pytest.mark.slow
def test_a_newer_schema_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    schema = schema_for(tmp_path)
    open_store(postgres.url(schema)).close()
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"UPDATE {schema}.alembic_version SET version_num = '9999'".encode())
    for refused in (open_store, upgrade_store):
        with pytest.raises(SchemaTooNew, match=r"9999.*pip install --upgrade fallow"):
            refused(postgres.url(schema))


@pytest.mark.slow
def test_no_upgrade_under_a_live_coordinator(postgres: Postgres, tmp_path: Path) -> None:
    store = open_store(postgres.url(schema_for(tmp_path)))
    store.renew_session("coordinator-a", 3600.0)
    with pytest.raises(StoreError, match=r"coordinator-a.*[Ss]top"):
        upgrade_store(postgres.url(schema_for(tmp_path)))
    store.end_session("coordinator-a")
    upgrade_store(postgres.url(schema_for(tmp_path)))
    store.close()


# ---------------------------------------------------------------- locks


@pytest.mark.slow
def test_a_commit_waits_for_locks_only_so_long(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fallow.store.postgresql.LOCK_TIMEOUT_MS", 50)
    schema = schema_for(tmp_path)
    store = open_store(postgres.url(schema))
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    with psycopg.connect(postgres.url()) as other:
        other.execute(f"SELECT 1 FROM {schema}.jobs FOR UPDATE".encode())
        with pytest.raises(StoreUnavailable, match="another coordinator holds"):
            store.commit([give(job, 0, 1)])
        assert store.get_job(job) is not None, "readers read on"
    store.commit([give(job, 0, 1)])
    store.close()


@pytest.mark.slow
def test_a_coordinator_that_stops_in_a_commit_loses_its_locks(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fallow.store.postgresql.LOCK_TIMEOUT_MS", 300)
    monkeypatch.setattr("fallow.store.postgresql.STALLED_AFTER_MS", 200)
    stopped, other = (open_store(postgres.url(schema_for(tmp_path))) for _ in range(2))
    job = job_id()
    stopped.commit([CreateJob(spec(job), "stopped", 1.0)])

    def stop_in_the_middle(session: Session) -> None:
        apply(session, [SetJob(job, 1, reason="half done")])
        session.run("number", {"id": job})  # all of it has arrived, and there it stops
        taken = other.acquire_job(job, "other", force=False)
        assert taken is not None
        assert (taken.owner, taken.epoch, taken.reason) == ("other", 2, "")

    with pytest.raises(StoreUnavailable):
        stopped._write(stop_in_the_middle)  # type: ignore[attr-defined]
    with pytest.raises(OwnershipLost):
        stopped.commit([SetJob(job, 1, reason="late")])
    other.close()
    stopped.close()


@pytest.mark.slow
def test_a_session_is_renewed_while_a_commit_waits(postgres: Postgres, tmp_path: Path) -> None:
    schema = schema_for(tmp_path)
    store = open_store(postgres.url(schema))
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    with psycopg.connect(postgres.url()) as other:
        other.execute(f"SELECT 1 FROM {schema}.jobs FOR UPDATE".encode())
        waiting = threading.Thread(target=lambda: store.commit([give(job, 0, 1)]))
        waiting.start()
        wait_for(lambda: blocked(postgres) > 0)
        assert store.renew_session("me", 60.0) == 1
        assert store.acquire_leadership("me") == 1
        assert waiting.is_alive()
    waiting.join(30)
    assert len(store.input_pages(job)) == 1
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [True, False])
def test_who_begins_to_lead_meanwhile_is_not_taken_for_dead(postgres: Postgres, tmp_path: Path, keeps: bool) -> None:
    """A statement that waits for the leader's row does not see a session that began after it."""
    schema = schema_for(tmp_path)
    store = open_store(postgres.url(schema))
    assert store.keep_session("old", 60.0, "", 1).term == 1
    store.end_session("old")
    store.renew_session("late", 60.0)
    terms: list[int | None] = []

    def lead() -> None:
        terms.append(store.keep_session("late", 60.0, "", 1).term if keeps else store.acquire_leadership("late"))

    waiting = threading.Thread(target=lead)
    with psycopg.connect(postgres.url()) as quick:
        quick.execute(f"SET search_path TO {schema}".encode())
        quick.execute("INSERT INTO sessions SELECT 'quick', 1, renewed_unix_s, 60.0, '' FROM sessions LIMIT 1")
        quick.execute("UPDATE leaderships SET owner = 'quick', term = 2, until_unix_s = 1.0")
        waiting.start()
        wait_for(lambda: blocked(postgres) > 0)
    waiting.join(30)
    assert terms == [None]
    assert store.acquire_leadership("quick") == 2
    assert store.keep_session("late", 60.0, "", 1).term is None
    store.end_session("quick")
    assert store.keep_session("late", 60.0, "", 1).term == 3
    store.close()


@pytest.mark.slow
def test_a_failed_commit_leaves_no_half_prepared_statement(postgres: Postgres, tmp_path: Path) -> None:
    """Whatever was prepared in a pipeline that the server then ignored is prepared again."""
    store = open_store(postgres.url(schema_for(tmp_path)))
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    wrong = give(job, 0, 5, page=Blob(Digest("a" * 64), None))  # type: ignore[arg-type]
    for number in range(6):
        start = 10 * number
        with pytest.raises(psycopg.IntegrityError):
            store.commit([wrong, put(job, number, start, start + 5), SetJob(job, 1, reason="never")])
        store.commit([put(job, number, start, start + 5), SetJob(job, 1, reason=str(number))])
    assert len(store.result_pages(job)) == 6
    store.close()


@pytest.mark.slow
def test_deadlocks_are_tried_again(postgres: Postgres, tmp_path: Path) -> None:
    schema = schema_for(tmp_path)
    store = open_store(postgres.url(schema))
    jobs = [job_id() for _ in range(2)]
    store.commit([CreateJob(spec(job), "me", 1.0) for job in jobs])
    runs = []
    other = psycopg.connect(postgres.url(), autocommit=True)
    other.execute("SET deadlock_timeout = '10s'")  # so that it is the store that is chosen
    waiting = threading.Thread(target=lambda: other.execute(f"SELECT 1 FROM {schema}.jobs FOR UPDATE".encode()))

    def in_the_wrong_order(session: Session) -> None:
        runs.append(1)
        if len(runs) == 1:
            session.run("lock_job", {"id": jobs[1]})
            other.execute("BEGIN")
            other.execute(f"SELECT 1 FROM {schema}.jobs WHERE job_id = %s FOR UPDATE".encode(), (jobs[0],))
            waiting.start()
            wait_for(lambda: blocked(postgres) > 0)
        session.run("lock_job", {"id": jobs[0]})
        if len(runs) > 1:
            return

    finish = threading.Thread(target=lambda: (waiting.join(30), other.execute("COMMIT")))

    def work(session: Session) -> None:
        in_the_wrong_order(session)

    starter = threading.Thread(target=lambda: (wait_for(waiting.is_alive), finish.start()))
    starter.start()
    store._write(work)  # type: ignore[attr-defined]
    starter.join(30)
    finish.join(30)
    other.close()
    assert len(runs) == 2
    store.close()


def blocked(postgres: Postgres) -> int:
    with psycopg.connect(postgres.url()) as connection:
        row = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
    assert row is not None
    return int(row[0])
