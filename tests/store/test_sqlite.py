"""SQLite as a store: the common suite, and what is its own: files, full disks, kills, schemas."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy

from fallow.model.ids import JobId
from fallow.store.database import load_statements
from fallow.store.open import open_store
from fallow.store.protocol import (
    CreateJob,
    DropResultPages,
    SchemaTooNew,
    SetJob,
    Store,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from fallow.store.recorded import cut_failed, merged
from fallow.store.render import ENGINES, path_of, rendered
from fallow.store.schema import HEAD_REVISION
from fallow.store.statements import SETTABLE
from fallow.store.upgrade import upgrade
from tests.store.conformance import StoreConformance, give, job_id, put, spec
from tests.store.coordination import CoordinationConformance

ROOT = Path(__file__).parents[2]


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'store' / 'pool.db'}"


def connection_of(store: Store) -> sqlite3.Connection:
    """The one that it writes with."""
    return store._jobs.session._connection  # type: ignore[attr-defined, no-any-return]


class TestSqlite(CoordinationConformance, StoreConformance):
    def open_at(self, folder: Path) -> Store:
        return open_store(url(folder))


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    "wrong", ["mysql://me:secret@host/db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "pool.db", ""]
)
def test_other_urls_are_refused_in_words(wrong: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///") as caught:
        open_store(wrong)
    assert "secret" not in str(caught.value)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    previous = os.umask(0o000)
    try:
        store = open_store(url(tmp_path))
        store.commit([CreateJob(spec(job_id()), "me", 1.0)])
    finally:
        os.umask(previous)
    folder = tmp_path / "store"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["pool.db", "pool.db-shm", "pool.db-wal"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    store.close()


def test_every_commit_waits_for_the_disk(tmp_path: Path) -> None:
    store = open_store(url(tmp_path))
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    pragmas = {name: connection_of(store).execute(f"PRAGMA {name}").fetchone()[0] for name in names}
    store.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_opening_takes_no_sqlalchemy_when_the_schema_is_current(tmp_path: Path) -> None:
    program = f"""
        import sys
        from fallow.store.open import open_store
        for _ in range(2):
            store = open_store({url(tmp_path)!r})
            store.open()
            store.close()
        print({"alembic", "sqlalchemy"} & sys.modules.keys())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_what_is_no_store_is_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "pool.db").write_bytes(b"this is a diary" * 1000)
    with pytest.raises(StoreUnavailable, match="not a SQLite database"):
        open_store(url(tmp_path))
    (folder / "pool.db").unlink()
    with sqlite3.connect(folder / "pool.db") as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    with pytest.raises(StoreError, match="not of Fallow"):
        open_store(url(tmp_path))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StoreUnavailable, match=r"pool\.db"):
        open_store(url(tmp_path))


# ---------------------------------------------------------------- schemas


def schema_of(path: Path) -> list[tuple[str, str, list[tuple[object, ...]]]]:
    """What SQLite knows of every table and index, whatever the wording of its statements."""
    with sqlite3.connect(path) as connection:
        names = connection.execute(
            "SELECT type, name, tbl_name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()
        described = []
        for kind, name, table in names:
            rows: list[tuple[object, ...]] = []
            if kind == "table":
                rows += connection.execute(f"PRAGMA table_info({name})").fetchall()
                rows += connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()
                rows += sorted(row[1:] for row in connection.execute(f"PRAGMA index_list({name})").fetchall())
            else:
                rows += connection.execute(f"PRAGMA index_xinfo({name})").fetchall()
                where = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0]
                rows += [(" ".join(where.split("WHERE")[1:]).strip(),)]
            described.append((name, table, rows))
    connection.close()
    return described


def test_a_fresh_schema_equals_the_migrations(tmp_path: Path) -> None:
    open_store(url(tmp_path)).close()
    migrated = tmp_path / "migrated.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{migrated}")
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()
    assert schema_of(migrated) == schema_of(tmp_path / "store" / "pool.db")
    with sqlite3.connect(migrated) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD_REVISION,)]
    raw.close()


def test_an_older_schema_is_upgraded_on_opening(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "pool.db"
    with sqlite3.connect(path) as raw:  # before the first migration
        raw.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    raw.close()
    store = open_store(url(tmp_path))
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0), give(job, 0, 5)])
    assert len(store.input_pages(job)) == 1
    store.close()


def test_a_newer_schema_is_refused_in_words(tmp_path: Path) -> None:
    open_store(url(tmp_path)).close()
    with sqlite3.connect(tmp_path / "store" / "pool.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(SchemaTooNew, match=r"9999.*pip install --upgrade fallow"):
        open_store(url(tmp_path))


# ---------------------------------------------------------------- trouble

_CHILD = """
    import resource, sys
    from fallow.store.open import open_store
    from fallow.store.protocol import CreateJob, StoreFull
    from fallow.model.ids import JobId
    from tests.store.conformance import give, put, spec, inline

    job = JobId("job-aaaaaaaaaaaaaaaa")
    store = open_store(sys.argv[1])
    store.commit([CreateJob(spec(job), "me", 1.0)])
"""


def child(program: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_CHILD) + textwrap.dedent(program), url(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """The disk is a limit on the size of files, set for a process of its own."""
    program = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
        committed = refused = 0
        for number in range(60):
            try:
                store.commit([give(job, number, number + 1, page=inline("x" * 20_000 + str(number)))])
                committed += 1
                assert not refused, "the limit was not reached by order"
            except StoreFull as error:
                assert "full" in str(error)
                refused += 1
        assert committed and refused, (committed, refused)
        assert len(store.input_pages(job)) == committed
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.commit([put(job, 0, 0, 1)])
        store.close()
        print(committed)
    """
    process = child(program, tmp_path)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    job = JobId("job-aaaaaaaaaaaaaaaa")
    store = open_store(url(tmp_path))
    assert [page.start for page in store.input_pages(job)] == list(range(int(output)))
    assert store.read_input(job, [0])[0].data is not None
    assert len(store.result_pages(job)) == 1
    store.close()


def test_a_database_at_its_limit_is_full(tmp_path: Path) -> None:
    store = open_store(url(tmp_path))
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    connection = connection_of(store)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreFull, match="full"):
        store.commit([give(job, number, number + 1) for number in range(5000)])
    assert store.input_pages(job) == []
    store.commit([give(job, 0, 1)])
    assert len(store.input_pages(job)) == 1
    store.close()


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    program = """
        number = 0
        while True:
            store.commit([give(job, number * 10 + part, number * 10 + part + 1) for part in range(10)])
            print(number, flush=True)
            number += 1
    """
    process = child(program, tmp_path)
    assert process.stdout is not None
    try:
        acknowledged = -1
        while acknowledged < 50:
            line = process.stdout.readline()
            assert line, "the child ended"
            acknowledged = int(line)
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait(30)
    whole = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    acknowledged = int(whole[-1]) if whole else acknowledged
    store = open_store(url(tmp_path))
    starts = [page.start for page in store.input_pages(JobId("job-aaaaaaaaaaaaaaaa"))]
    assert starts == list(range(len(starts)))
    assert len(starts) % 10 == 0, "half of a commit is there"
    assert len(starts) >= (acknowledged + 1) * 10
    store.close()


def test_a_store_that_another_process_holds_is_said_to_be_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fallow.store.sqlite.BUSY_TIMEOUT_S", 0.05)
    store = open_store(url(tmp_path))
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    with sqlite3.connect(tmp_path / "store" / "pool.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another process"):
            store.commit([give(job, 0, 1)])
        assert store.get_job(job) is not None, "readers read on"
        other.execute("COMMIT")
    other.close()
    store.commit([give(job, 0, 1)])
    store.close()


# ---------------------------------------------------------------- size and speed


def test_progress_of_a_huge_job_costs_kilobytes(tmp_path: Path) -> None:
    store = open_store(url(tmp_path))
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    step = 100_000
    for number in range(200):
        start = number * step
        store.commit([give(job, start, start + step), put(job, number, start, start + step)])
        store.commit([DropResultPages(job, 1, below=start + step)])
    assert store.done_intervals(job) == ((0, 200 * step),)
    store.close()
    assert (tmp_path / "store" / "pool.db").stat().st_size < 400_000


_SMALL = {
    "unread_of_dead_owners",
    "revision",
    "notes",
    "list_nodes",
    "sessions",
    "forget_sessions",
    "end_leadership",
}
WHOLE = {"live_digests", "list_jobs", "raise_epochs", "raise_terms", *_SMALL}
"""Statements that read a table or an index from end to end, or until they have enough."""


def test_no_other_statement_looks_at_a_whole_table(tmp_path: Path) -> None:
    store = open_store(url(tmp_path))
    connection = connection_of(store)
    statements, _ = load_statements("sqlite")
    for name, text in statements.items():
        values = dict.fromkeys(re.findall(r":(\w+)", text), "1")
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", values)]
        scans = [step for step in plan if step.startswith("SCAN") and "json_each" not in step]
        assert name in WHOLE or not scans, (name, plan)
    live = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statements['live_digests']}")]
    assert not [step for step in live if step.startswith("SCAN") and "pages" in step and "INDEX" not in step], live
    store.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_sql_is_what_would_be_rendered_now(engine: str) -> None:
    """Else run: python -m fallow.store.render"""
    assert path_of(engine).read_text().split() == rendered(engine).split()


def test_what_set_job_sets_are_columns() -> None:
    assert ("job_id", "epoch", *SETTABLE) == SetJob.__struct_fields__


def test_merged() -> None:
    assert merged([(5, 7), (0, 2), (2, 3), (6, 9), (4, 4)]) == [(0, 3), (5, 9)]
    assert merged([]) == []


def test_cut_failed_keeps_the_sum() -> None:
    whole, removed, failed = (0, 100), (10, 11), (5, 10, 20)
    left = cut_failed((0, 10), whole, removed, 7, failed)
    right = cut_failed((11, 100), whole, removed, 7, failed)
    assert (left, right) == ((1, (5,)), (5, (20,)))
