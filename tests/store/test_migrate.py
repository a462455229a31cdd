"""Moving a pool from one store to another: all of it or nothing, whatever happens in the middle."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

from fallow.store.migrate import migrate
from fallow.store.open import open_store
from fallow.store.protocol import CreateJob, StoreError, StoreMoved, StoreUnavailable
from tests.engines.postgres import Postgres, free_port
from tests.store.conformance import give, job_id, spec
from tests.store.filled import all_of, fill
from tests.store.test_postgresql import schema_for

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'pool.db'}"


def test_everything_moves_and_the_old_store_says_where(postgres: Postgres, tmp_path: Path) -> None:
    source, target = sqlite_url(tmp_path), postgres.url(schema_for(tmp_path))
    old = open_store(source)
    jobs = fill(old)
    before = all_of(old, jobs)
    old.close()
    lines: list[str] = []
    moved = migrate(source, target, lines.append)
    assert moved.rows > 60
    assert "jobs: 3 rows, checked" in lines
    with pytest.raises(StoreMoved, match=r"was moved to postgresql://127\.0\.0\.1.*--store") as caught:
        open_store(source)
    assert "secret" not in str(caught.value)
    new = open_store(target)
    assert all_of(new, jobs) == before
    new.commit([give(jobs[0], 300, 310)])
    later = job_id()
    new.commit([CreateJob(spec(later), "me", 2.0)])
    assert new.list_jobs(1, False)[0].spec.job_id == later, "jobs are numbered on"
    assert new.acquire_leadership("you") == 2, "terms go on"
    again = migrate(source, target)
    assert again.rows == 0, "a repeat changes nothing"
    assert new.get_job(later) is not None
    new.close()


def test_back_to_sqlite(postgres: Postgres, tmp_path: Path) -> None:
    source, target = postgres.url(schema_for(tmp_path)), sqlite_url(tmp_path)
    old = open_store(source)
    jobs = fill(old, 1)
    before = all_of(old, jobs)
    old.close()
    migrate(source, target)
    new = open_store(target)
    assert all_of(new, jobs) == before
    new.close()
    with pytest.raises(StoreMoved):
        open_store(source)


def test_text_that_postgresql_does_not_hold(postgres: Postgres, tmp_path: Path) -> None:
    old = open_store(sqlite_url(tmp_path))
    job = job_id()
    old.commit([CreateJob(spec(job, "a\0b"), "me", 1.0)])
    old.close()
    migrate(sqlite_url(tmp_path), postgres.url(schema_for(tmp_path)))
    new = open_store(postgres.url(schema_for(tmp_path)))
    assert new.find_job("a\0b") == job
    new.close()


# ---------------------------------------------------------------- refusals


def test_a_live_coordinator_refuses_it(postgres: Postgres, tmp_path: Path) -> None:
    source, target = sqlite_url(tmp_path), postgres.url(schema_for(tmp_path))
    old = open_store(source)
    fill(old, 1)
    with pytest.raises(StoreError, match=r"another process has .* open"):
        migrate(source, target)
    old.renew_session("coordinator-a", 3600.0)
    old.close()
    with pytest.raises(StoreError, match="coordinator-a"):
        migrate(source, target)
    old.open()
    old.end_session("coordinator-a")
    old.close()
    new = open_store(target)
    new.renew_session("coordinator-b", 3600.0)
    with pytest.raises(StoreError, match="coordinator-b"):
        migrate(source, target)
    new.end_session("coordinator-b")
    new.close()
    migrate(source, target)


def test_what_cannot_be_moved_is_said_in_words(postgres: Postgres, tmp_path: Path) -> None:
    source, target = sqlite_url(tmp_path), postgres.url(schema_for(tmp_path))
    with pytest.raises(StoreError, match="there is no store"):
        migrate(source, target)
    assert not (tmp_path / "pool.db").exists()
    (tmp_path / "pool.db").touch()
    with pytest.raises(StoreError, match="empty"):
        migrate(source, target)
    old = open_store(source)
    jobs = fill(old, 1)
    before = all_of(old, jobs)
    old.close()
    with pytest.raises(StoreError, match="to itself"):
        migrate(source, source)
    with pytest.raises(StoreUnavailable, match="no server listens"):
        migrate(source, f"postgresql://fallow:x@127.0.0.1:{free_port()}/postgres")
    with pytest.raises(StoreError, match="password is wrong"):
        migrate(source, postgres.url(password="wrong"))
    other = open_store(target)
    fill(other, 1)
    other.close()
    with pytest.raises(StoreError, match="holds a pool already"):
        migrate(source, target)
    old.open()
    assert all_of(old, jobs) == before, "after every refusal the pool works on where it was"
    old.close()


def test_a_moved_store_does_not_move_elsewhere(postgres: Postgres, tmp_path: Path) -> None:
    source, target = sqlite_url(tmp_path), postgres.url(schema_for(tmp_path))
    old = open_store(source)
    fill(old, 1)
    old.close()
    migrate(source, target)
    with pytest.raises(StoreMoved, match="was moved to"):
        migrate(source, f"sqlite:///{tmp_path / 'third.db'}")


def test_rows_that_arrive_changed_are_noticed(postgres: Postgres, tmp_path: Path) -> None:
    source, target = sqlite_url(tmp_path), postgres.url(schema_for(tmp_path))
    old = open_store(source)
    jobs = fill(old, 1)
    before = all_of(old, jobs)
    old.close()
    open_store(target).close()
    schema = schema_for(tmp_path)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(
            f"CREATE FUNCTION {schema}.spoil() RETURNS trigger AS "
            "'BEGIN NEW.stop := NEW.stop + 1; RETURN NEW; END' LANGUAGE plpgsql".encode()
        )
        connection.execute(
            f"CREATE TRIGGER spoil BEFORE INSERT ON {schema}.input_pages FOR EACH ROW "
            f"EXECUTE FUNCTION {schema}.spoil()".encode()
        )
    with pytest.raises(StoreError, match="input_pages did not arrive"):
        migrate(source, target)
    new = open_store(target)
    assert new.list_jobs(10, False) == []
    new.close()
    old.open()
    assert all_of(old, jobs) == before
    old.close()


# ---------------------------------------------------------------- crashes

_CHILD = """
    import os, signal, sys
    from fallow.store import migrate as moving
    from fallow.store import sqlite, postgresql, transfer

    step = sys.argv[3]

    def die(*arguments, **more):
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "marked":
        moving._copy = die
    elif step == "copying":
        whole = transfer.sum_of
        def sum_of(session, table, columns):
            if table == "result_pages":
                die()
            return whole(session, table, columns)
        transfer.sum_of = sum_of
    elif step == "copied":
        moving._mark_moved = die
    moving.migrate(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("step", ["marked", "copying", "copied"])
def test_a_crash_in_the_middle(postgres: Postgres, tmp_path: Path, step: str) -> None:
    source, target = sqlite_url(tmp_path), postgres.url(schema_for(tmp_path))
    old = open_store(source)
    jobs = fill(old, 1)
    before = all_of(old, jobs)
    old.close()
    command = [sys.executable, "-c", textwrap.dedent(_CHILD), source, target, step]
    assert subprocess.run(command, cwd=ROOT, timeout=90).returncode == -signal.SIGKILL
    with pytest.raises(StoreMoved, match="was not finished: run `fallow store migrate`"):
        open_store(source)
    with pytest.raises(StoreMoved, match="is being moved to"):
        migrate(source, f"sqlite:///{tmp_path / 'third.db'}")
    assert migrate(source, target).source.endswith("pool.db")
    new = open_store(target)
    assert all_of(new, jobs) == before
    new.close()
    with pytest.raises(StoreMoved, match="was moved to"):
        open_store(source)
    with sqlite3.connect(tmp_path / "pool.db") as raw:
        assert raw.execute("SELECT count(*) FROM jobs").fetchone() == (1,), "the old one is kept as it was"
    raw.close()
