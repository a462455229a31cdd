"""What listings show of a job: of one that its owner has in memory, and of one that no coordinator has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fallow.model.ids import NodeId
from fallow.model.job import JobCounts, JobInfo, JobKind
from fallow.model.states import JobState
from fallow.store.protocol import StoredJob

if TYPE_CHECKING:
    from fallow.coordinator.owned_job import OwnedJob

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


def info_of_owned(job: OwnedJob, tasks_by_node: Mapping[str, int], by_node: bool) -> JobInfo:
    """A listing's row of a job in memory. `by_node`: with how many tasks each node did."""
    progress, spec = job.progress, job.spec
    names: dict[str, int] = {}
    for node_id, count in tasks_by_node.items() if by_node else ():
        name = job.node_name(NodeId(node_id))
        names[name] = names.get(name, 0) + count
    slots = progress.slots if spec.kind is JobKind.MAP else progress.busy_slots
    return JobInfo(
        job_id=spec.job_id,
        name=spec.name,
        kind=spec.kind,
        state=str(job.known_state if progress.is_final else progress.state),
        reason=shown_reason(progress.reason, job.input_error),
        counts=progress.counts(),
        total=progress.total if progress.total >= 0 else spec.total_hint,
        detached=spec.detached,
        account=spec.account,
        created_unix_s=spec.created_unix_s,
        ended_unix_s=job.ended_unix_s,
        nodes=names,
        epoch=job.epoch,
        reason_kind=progress.reason_kind,
        slots=0 if progress.is_final else slots,
        single=spec.single,
        least_tier=spec.least_tier,
        node_count=len(tasks_by_node),
    )


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
