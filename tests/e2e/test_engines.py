"""Pools that stand on PostgreSQL and S3: work, loss of everything, restore, and a pool that outgrows SQLite."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import obstore
import psycopg
import pytest

from fallow.coordinator.s3_blobs import S3Blobs
from tests.engines.postgres import Postgres
from tests.engines.seaweed import Seaweed
from tests.pool import Pool, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

LARGE = """
    import numpy as np
    import fallow

    app = fallow.App("double")

    @app.function()
    def double(array):
        return array * 2

    if __name__ == "__main__":
        arrays = [np.full(200_000, number, dtype=float) for number in range(6)]
        print(sum(float(array.sum()) for array in double.map(arrays)))
        print(double.map(arrays, detached=True).id)
"""

READ = """
    import sys
    import fallow

    print(sum(float(array.sum()) for array in fallow.job(sys.argv[1]).results()))
"""


def test_everything_is_destroyed_and_comes_back(
    make_pool: Callable[..., Pool], postgres: Postgres, seaweed: Seaweed, tmp_path: Path
) -> None:
    store, blobs = postgres.url("e2e_first"), seaweed.url("e2e-first")
    first = make_pool(arguments=("--store", store, "--blobs", blobs))
    done = first.script(LARGE)
    assert done.returncode == 0, done.stderr
    total, job = done.stdout.split()
    assert float(total) == 2 * 200_000 * sum(range(6))
    assert "Unclosed" not in done.stderr
    wait_for("the detached job", lambda: first.json("status", job)["state"] == "succeeded")
    assert not list((first.home / "pool" / "blobs").glob("??/*")), "nothing lies in the folder"

    file = tmp_path / "pool.backup"
    saved = first.cli("store", "backup", "--to", str(file), "--store", store, "--blobs", blobs)
    assert saved.returncode == 0, saved.stderr
    assert first.stop() == 0
    shutil.rmtree(first.home)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("DROP SCHEMA e2e_first CASCADE")
    bucket = S3Blobs(blobs)._store
    for batch in obstore.list(bucket):
        obstore.delete(bucket, [entry["path"] for entry in batch])

    store, blobs = postgres.url("e2e_second"), seaweed.url("e2e-second")
    restored = first.cli("store", "restore", "--from", str(file), "--store", store, "--blobs", blobs)
    assert restored.returncode == 0, restored.stderr
    second = make_pool(name="second", arguments=("--store", store, "--blobs", blobs))
    read = second.script(READ, job)
    assert read.returncode == 0, read.stderr
    assert float(read.stdout) == float(total)
    again = second.script(LARGE)
    assert again.stdout.split()[0] == total, "it works on"


LONG = """
    import time
    import fallow

    app = fallow.App("slow")

    @app.function()
    def slow(number):
        time.sleep(0.25)
        return number * number

    print(slow.map(range(36), detached=True).id)
"""


def test_a_pool_outgrows_sqlite_while_a_job_runs(make_pool: Callable[..., Pool], postgres: Postgres) -> None:
    old = make_pool()
    job = old.script(LONG).stdout.strip()
    wait_for("some results", lambda: old.json("status", job)["counts"]["done"] >= 8)
    refused = old.cli("store", "migrate", "--to", postgres.url("e2e_moved"))
    assert refused.returncode == 1
    assert "another process has" in refused.stderr
    assert old.stop() == 0
    moved = old.cli("store", "migrate", "--to", postgres.url("e2e_moved"))
    assert moved.returncode == 0, moved.stderr
    new = make_pool(arguments=("--store", postgres.url("e2e_moved")))
    wait_for("the job's end", lambda: new.json("status", job)["state"] == "succeeded")
    read = new.script(f"""
        import fallow
        print(list(fallow.job("{job}").results()))
    """)
    assert read.stdout.strip() == str([number * number for number in range(36)]), read.stderr


def refused(pool: Pool) -> str:
    """What a pool says that does not start."""
    try:
        pool.launch()
        assert pool.process is not None
        assert pool.process.wait(90) == 1
        assert "Traceback" not in pool.said()
        pool.assert_nothing_left()
    except subprocess.TimeoutExpired:
        pytest.fail(f"it did not end: {pool.said()}")
    finally:
        pool.close()
    return " ".join(pool.said().split())


def test_two_pools_on_one_database(make_pool: Callable[..., Pool], postgres: Postgres, tmp_path: Path) -> None:
    shared = ("--store", postgres.url("e2e_shared"), "--no-agent")
    first = make_pool(name="first", arguments=shared)
    other = tmp_path / "other"
    assert "this store is in use by another pool" in refused(Pool(other, *shared))
    own = make_pool(name="other", arguments=("--store", postgres.url("e2e_own"), "--no-agent"))
    own.stop()
    first.stop()
    said = refused(Pool(other, *shared))
    assert "belongs to the pool" in said
    assert "To leave the old pool for good, delete" in said
    fresh = Pool(tmp_path / "fresh", *shared)
    said = refused(fresh)
    assert "a pool with another secret, none of whose coordinators runs" in said
    found = re.search(r"write its id into (\S+): (pool-\w+)", said)
    assert found is not None, said
    Path(found[1]).write_text(found[2])
    make_pool(name="fresh", arguments=shared)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda p, s: ("--store", p.url(password="guessed")), "the user name or the password is wrong"),
        (lambda p, s: ("--store", p.url(database="missing")), "there is no database of that name"),
        (lambda p, s: ("--blobs", s.url(bucket="missing")), "there is no such bucket"),
        (lambda p, s: ("--blobs", "s3://pool?colour=blue"), "colour is no option"),
    ],
)
def test_what_is_wrong_ends_the_start_in_words(
    postgres: Postgres,
    seaweed: Seaweed,
    tmp_path: Path,
    arguments: Callable[[Postgres, Seaweed], tuple[str, ...]],
    words: str,
) -> None:
    said = refused(Pool(tmp_path / "home", *arguments(postgres, seaweed), "--no-agent"))
    assert words in said
    assert "guessed" not in said
