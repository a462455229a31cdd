"""A store that does not answer while a job is submitted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

import fallow
from fallow.model.errors import PoolRefused, PoolUnreachable
from fallow.sdk.client import disconnect
from tests.pool import Pool, wait_for

app = fallow.App("store-away")


@app.function
def wait_long(seconds: float) -> None:
    import time

    time.sleep(seconds)


@pytest.mark.slow
def test_a_job_that_was_given_up_while_the_store_was_away_does_not_run_later(
    make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    monkeypatch.setenv("FALLOW_URL", pool.url)
    monkeypatch.setenv("FALLOW_HOME", str(pool.home))
    monkeypatch.setattr("fallow.sdk.mapjob.SUBMIT_PATIENCE_S", 0.1)
    disconnect()
    lock = sqlite3.connect(pool.home / "pool" / "store.sqlite", isolation_level=None)
    try:
        fallow.jobs()
        lock.execute("BEGIN IMMEDIATE")
        with pytest.raises((PoolUnreachable, PoolRefused)):
            wait_long.spawn(600.0)
        lock.execute("ROLLBACK")
        (job,) = wait_for("the job that the pool holds all the same", fallow.jobs)
        assert (job.name, job.detached, job.single) == ("wait_long", True, True)
        wait_for("its end", lambda: fallow.jobs()[0].state == "cancelled")
        assert "gave up" in fallow.jobs()[0].reason
    finally:
        lock.close()
        disconnect()
