"""What must hold once everything is healed and every customer has gone."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from tests.chaos.parts import Large
from tests.chaos.report import Noted, Report

WAIT_S = 80.0
"""Standing jobs of customers that have gone end after a minute."""
MEMORY_GROWTH_BYTES = 96 << 20

_FINAL = "('succeeded', 'failed', 'cancelled')"
_PAGES = """
    SELECT j.job_id, count(*) FROM {table} p JOIN jobs j ON j.number = p.job
    WHERE j.state IN {final} GROUP BY j.job_id
"""


def check(large: Large, report: Report) -> None:
    report.wrong += [
        f"{noted.what}: {noted.wrong}"
        for noted in report.noted
        if noted.wrong and _counts(noted.what) and not _is_refused_for_room(noted, report)
    ]
    detached = {noted.job for noted in report.noted if noted.job}
    _until_empty(report, "jobs that have not ended", lambda: _active(large))
    for table in ("input_pages", "result_pages"):
        _until_empty(
            report, f"{table} of attached jobs that have ended", lambda table=table: _rows(large, table, detached)
        )  # type: ignore[misc]
    _lost_blobs(large, report)
    for name, before in report.memory_before.items():
        grown = report.memory_after.get(name, 0) - before
        if grown > MEMORY_GROWTH_BYTES:
            report.wrong.append(f"{name} grew by {grown >> 20} MB")


def _counts(what: str) -> bool:
    """A request that failed is a missed one, not a lost result; a job that failed is wrong."""
    return what.startswith("job:") or what == "call"


def _is_refused_for_room(noted: Noted, report: Report) -> bool:
    """While the disk is full, a job may be refused in words; its customer runs it again."""
    return noted.wrong.startswith("PoolRefused: the disk under ") and any(
        fault.kind.startswith("full disk") and fault.began <= noted.began + noted.seconds and noted.began <= fault.ended
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


def _query(large: Large, text: str) -> list[tuple[Any, ...]]:
    import psycopg

    assert large.postgres is not None
    with psycopg.connect(large.postgres.url(), connect_timeout=10, options="-c statement_timeout=20s") as connection:
        return connection.execute(text.encode()).fetchall()


def _rows(large: Large, table: str, detached: set[str]) -> list[str]:
    found = _query(large, _PAGES.format(table=table, final=_FINAL))
    return [f"{job} ({count})" for job, count in found if job not in detached]


def _lost_blobs(large: Large, report: Report) -> None:
    """Every blob that some job names is there."""
    named = {
        row[0]
        for table in ("input_pages", "result_pages")
        for row in _query(large, f"SELECT DISTINCT digest FROM {table} WHERE NOT inline")
    }
    there = large.blob_names()
    lost = named - there
    if lost:
        report.wrong.append(f"{len(lost)} of {len(named)} blobs that jobs name are lost")
    report.blobs = len(there)
    report.blobs_named = len(named)
