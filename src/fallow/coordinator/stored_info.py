"""What listings show of a job that no coordinator has in memory."""

from __future__ import annotations

import re

from fallow.model.job import JobCounts, JobInfo
from fallow.model.states import JobState
from fallow.store.protocol import StoredJob

REASON_KIND = re.compile(r"^\[(\w+)\] ", re.ASCII)


def stored_reason(kind: str, reason: str) -> str:
    return f"[{kind}] {reason}" if kind else reason


def shown_reason(reason: str, input_error: str) -> str:
    """Why a job ended; of one that ended well, why it has fewer tasks than it should have had."""
    return reason or (f"its inputs ended with {input_error}" if input_error else "")


def split_reason(stored: str) -> tuple[str, str]:
    """(kind, reason) of what stored_reason made."""
    match = REASON_KIND.match(stored)
    return (match[1], stored[match.end() :]) if match else ("", stored)


def info_of_stored(stored: StoredJob) -> JobInfo:
    """A listing's row of a job that no coordinator has in memory (it has ended)."""
    kind, reason = split_reason(stored.reason)
    # Of a job that is not over, the row counts what its client has taken.
    complete = stored.state is JobState.SUCCEEDED and stored.total >= 0
    done = stored.total if complete else sum(stored.nodes.values())
    return JobInfo(
        job_id=stored.spec.job_id,
        name=stored.spec.name,
        kind=stored.spec.kind,
        state=str(stored.state),
        reason=shown_reason(reason, stored.input_error),
        counts=JobCounts(
            inputs=max(0, stored.total),
            done=done,
            failed=stored.failed,
            retried=stored.retried,
            wasted_s=stored.wasted_s,
        ),
        total=stored.total,
        detached=stored.spec.detached,
        account=stored.spec.account,
        created_unix_s=stored.created_unix_s,
        ended_unix_s=stored.ended_unix_s,
        nodes=stored.nodes,
        epoch=stored.epoch,
        reason_kind=kind,
        single=stored.spec.single,
    )
