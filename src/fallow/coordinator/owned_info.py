"""What listings and progress show of a job that a coordinator has in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fallow.coordinator.stored_info import shown_reason
from fallow.model.job import JobInfo, JobKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fallow.coordinator.owned_job import OwnedJob


def info_of_owned(job: OwnedJob, by_node: Mapping[str, int]) -> JobInfo:
    """`by_node`: results by the node that they came from."""
    progress, spec = job.progress, job.spec
    names: dict[str, int] = {}
    for node_id, count in by_node.items():
        name = job.node_name(node_id)
        names[name] = names.get(name, 0) + count
    return JobInfo(
        job_id=job.job_id,
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
        slots=_slots(job),
        single=spec.single,
        least_tier=spec.least_tier,
    )


def _slots(job: OwnedJob) -> int:
    if job.progress.is_final:
        return 0
    return job.progress.slots if job.spec.kind is JobKind.MAP else len(job.progress.by_slot)
