"""What must hold once everything is healed and every customer has gone."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from fallow.coordinator.blob_store import BlobStore, open_blob_store
from fallow.coordinator.s3_blobs import S3Blobs
from fallow.store.open import open_store
from fallow.store.protocol import Store
from tests.chaos.parts import Large
from tests.chaos.report import Noted, Report

WAIT_S = 80.0
"""Standing jobs of customers that have gone end after a minute."""
MEMORY_GROWTH_BYTES = 96 << 20
LATER_S = 30 * 86_400.0
ROOM_SEEN_S = 3.0
"""A pool has seen after so long that there is room again."""
S3_ROOM_SEEN_S = 75.0
"""SeaweedFS looks once a minute, and takes nothing where it found too little."""
JOB_TABLES = ("input_pages", "result_pages", "checkpoints")

_OF_ENDED = """
    SELECT j.job_id, count(*) FROM {table} p JOIN jobs j ON j.number = p.job
    WHERE j.state IN ('succeeded', 'failed', 'cancelled') GROUP BY j.job_id
"""
_TWICE = """
    SELECT j.job_id, p.start, p.before FROM (
        SELECT job, start, lag(stop) OVER (PARTITION BY job ORDER BY start) AS before FROM {table}
    ) p JOIN jobs j ON j.number = p.job WHERE p.before > p.start
"""
_MISSING = """
    SELECT j.job_id, j.total, coalesce(sum(p.stop - p.start), 0) FROM jobs j JOIN job_specs s ON s.job = j.number
    LEFT JOIN result_pages p ON p.job = j.number
    WHERE j.state = 'succeeded' AND j.job_id = ANY(%s) GROUP BY j.job_id, j.total
    HAVING coalesce(sum(p.stop - p.start), 0) <> j.total
"""


def check(large: Large, report: Report) -> None:
    """While the pool still runs: what ends by itself is waited for."""
    report.wrong += [
        f"{noted.what}: {noted.wrong}"
        for noted in report.noted
        if noted.wrong and _counts(noted.what) and not _is_refused_for_room(noted, report)
    ]
    detached = sorted({noted.job for noted in report.noted if noted.job})
    _until_empty(report, "jobs that have not ended", lambda: _active(large))
    store = open_store(_url(large))
    store.open()
    try:
        for table in JOB_TABLES:
            what = f"{table} of attached jobs that have ended"
            _until_empty(report, what, lambda table=table: _rows(large, table, store))  # type: ignore[misc]
    finally:
        store.close()
    for table in ("input_pages", "result_pages"):
        if twice := _query(large, _TWICE.format(table=table)):
            report.wrong.append(f"{len(twice)} {table} overlap others of their job: {twice[:5]}")
    if missing := _query(large, _MISSING, detached):
        report.wrong.append(f"results of jobs that succeeded are not all there, or twice: {missing[:5]}")
    for name, before in report.memory_before.items():
        grown = report.memory_after.get(name, 0) - before
        if grown > MEMORY_GROWTH_BYTES:
            report.wrong.append(f"{name} grew by {grown >> 20} MB")


def check_blobs(large: Large, report: Report) -> None:
    """Once nothing of the pool runs but its store: every blob that a job names is there, and a collection finds every
    other one."""
    store = open_store(_url(large))
    store.open()
    try:
        named, there = store.live_digests(), large.blob_names()
        report.blobs, report.blobs_named = len(there), len(named)
        if lost := named - there:
            report.wrong.append(f"{len(lost)} of {len(named)} blobs that jobs name are lost: {sorted(lost)[:3]}")
        _blob_store(large).collect(store.live_among, 0.0)
        after = large.blob_names()
        if left := after - named:
            report.wrong.append(f"a collection leaves {len(left)} blobs that no job names: {sorted(left)[:3]}")
        if taken := (named & there) - after:
            report.wrong.append(f"a collection deletes {len(taken)} blobs that jobs name: {sorted(taken)[:3]}")
        if live := store.renewals():
            report.wrong.append(f"coordinators that have ended still have sessions: {live}")
    finally:
        store.close()


def _blob_store(large: Large) -> BlobStore:
    if large.seaweed is not None:  # it keeps what is young: by this clock nothing is
        return S3Blobs(large.blobs_url(), lambda: time.time() + LATER_S)
    return open_blob_store(large.blobs_url(), large.token)


def _counts(what: str) -> bool:
    """A request that failed is a missed one, not a lost result; a job that failed is wrong."""
    return what.startswith("job:") or what == "call"


def _is_refused_for_room(noted: Noted, report: Report) -> bool:
    """While a disk is full, a job may be refused, or fail, in words; its customer runs it again."""
    return noted.is_refused_for_room and any(
        fault.kind.startswith("full disk")
        and fault.began <= noted.began + noted.seconds
        and noted.began <= fault.ended + (S3_ROOM_SEEN_S if fault.kind.endswith("S3") else ROOM_SEEN_S)
        for fault in report.happened
    )


def _until_empty(report: Report, what: str, look: Any) -> None:
    end = time.monotonic() + WAIT_S
    while left := look():
        if time.monotonic() > end:
            report.wrong.append(f"{len(left)} {what}: {', '.join(map(str, left))[:1000]}")
            return
        time.sleep(1.0)


def _active(large: Large) -> list[str]:
    try:
        done = large.cli("jobs", "--active", "--json", timeout_s=30.0)
    except subprocess.TimeoutExpired:
        return ["`fallow jobs` does not answer"]
    if done.returncode != 0:
        return [done.stderr]
    return [f"{job['job_id']} {job['name']} {job['state']}" for job in json.loads(done.stdout)]


def _query(large: Large, text: str, *values: Any) -> list[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(_url(large), connect_timeout=10, options="-c statement_timeout=20s") as connection:
        return connection.execute(text.encode(), values or None).fetchall()


def _rows(large: Large, table: str, store: Store) -> list[str]:
    """Of jobs that nobody will ask for any more."""
    found = _query(large, _OF_ENDED.format(table=table))
    stored = {job: store.get_job(job) for job, _ in found}
    return [f"{job} ({count})" for job, count in found if (known := stored[job]) and not known.spec.detached]


def _url(large: Large) -> str:
    assert large.postgres is not None
    return large.postgres.url()
