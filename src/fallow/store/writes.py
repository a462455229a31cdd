"""What each operation of store.protocol does to the tables, inside one transaction that the caller holds.

Consecutive operations of one kind are applied together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from fallow.model.ids import JobId
from fallow.model.job import JobSpec
from fallow.model.states import JobState
from fallow.store.database import Session
from fallow.store.ownership import Batch
from fallow.store.protocol import (
    AppendLogs,
    CreateJob,
    DeleteJob,
    DropCheckpoints,
    DropInputPages,
    DropResultPages,
    Op,
    PutCheckpoint,
    PutInputPage,
    PutNode,
    PutResultPage,
    ReplaceResults,
    SetJob,
)
from fallow.store.recorded import add_done, cut_done, cut_results, done_near, merged

encode = msgspec.msgpack.Encoder().encode


def apply(session: Session, ops: Sequence[Op]) -> None:
    """Apply in order, inside the caller's transaction. Raises OwnershipLost; the caller then rolls back."""
    batch = Batch(session, ops)
    for kind, group in groupby(batch.ops, type):
        _APPLY[kind](batch, list(group))


def _create_jobs(batch: Batch, ops: list[CreateJob]) -> None:
    for op in ops:
        spec = op.spec
        if spec.job_id in batch.numbers:
            continue
        batch.session.run(
            "create_job",
            {
                "job_id": spec.job_id, "name": spec.name, "state": JobState.OPEN.value, "owner": op.owner,
                "epoch": 1, "reason": "", "total": -1, "created_unix_s": op.unix_s, "ended_unix_s": 0.0,
                "nodes": encode({}), "input_error": "", "consumed": 0, "retried": 0, "failed": 0, "wasted_s": 0.0,
                "inputs_below": 0,
            },
        )  # fmt: skip
        number: int = batch.session.run("number", {"id": spec.job_id})[0][0]
        batch.numbers[spec.job_id] = number
        batch.session.run("put_spec", {"job": number, "spec": encode(spec)})
        batch.session.run_many(
            "put_job_blob", [{"job": number, "digest": digest} for digest in sorted(_spec_digests(spec))]
        )


def _set_jobs(batch: Batch, ops: list[SetJob]) -> None:
    rows = []
    for op in ops:
        row: dict[str, Any] = {f"new_{name}": getattr(op, name) for name in SetJob.__struct_fields__[2:]}
        row["new_state"] = None if op.state is None else op.state.value
        row["new_nodes"] = None if op.nodes is None else encode(op.nodes)
        row["job"] = batch.number(op.job_id)
        rows.append(row)
    batch.session.run_many("set_job", rows)


def _put_inputs(batch: Batch, ops: list[PutInputPage]) -> None:
    batch.session.run_many(
        "put_input",
        [
            {
                "job": batch.number(op.job_id), "start": op.start, "stop": op.stop, "digest": op.page.digest,
                "size": op.page.size, "inline": op.page.data is not None, "data": op.page.data,
            }
            for op in ops
            if op.stop > batch.inputs_below.get(op.job_id, 0)
        ],
    )  # fmt: skip


def _put_results(batch: Batch, ops: list[PutResultPage]) -> None:
    covered = _covered(batch, ops)
    batch.session.run_many(
        "put_result",
        [
            {
                "job": batch.number(op.job_id), "start": op.start, "stop": op.stop, "seq": op.seq,
                "page_start": op.page_start, "failed_count": op.failed_count,
                "failed": encode(op.failed) if op.failed else None,
                "fault": encode(op.fault) if op.fault else None,
                "node": op.node, "digest": op.page.digest, "size": op.page.size,
                "inline": op.page.data is not None or op.fault is not None, "data": op.page.data,
            }
            for op in ops
            if (op.job_id, op.start) not in covered
        ],
    )  # fmt: skip


def _drop_inputs(batch: Batch, ops: list[DropInputPages]) -> None:
    below = {op.job_id: op.below for op in sorted(ops, key=lambda op: op.below)}
    for job_id, bound in below.items():
        if bound <= batch.inputs_below.get(job_id, 0):
            continue
        number = batch.number(job_id)
        batch.session.run("drop_inputs", {"number": number, "below": bound})
        batch.session.run("set_inputs_below", {"job": number, "below": bound})
        batch.inputs_below[job_id] = bound


def _drop_results(batch: Batch, ops: list[DropResultPages]) -> None:
    for kind, bounds in (
        ("results_below", {op.job_id: op.below for op in sorted(ops, key=lambda op: op.below)}),
        ("results_below_seq", {op.job_id: op.below_seq for op in sorted(ops, key=lambda op: op.below_seq)}),
    ):
        wanted = [{"number": batch.number(job_id), "below": below} for job_id, below in bounds.items() if below > 0]
        gone = {
            values["number"]: (values, [(start, stop) for start, stop in found])
            for values, found in zip(wanted, batch.session.run_each(kind, wanted), strict=True)
            if found
        }
        batch.session.run_many(f"drop_{kind}", [values for values, _ in gone.values()])
        add_done(batch.session, {number: merged(found) for number, (_, found) in gone.items()})


def _replace_results(batch: Batch, ops: list[ReplaceResults]) -> None:
    for op in ops:
        number = batch.number(op.job_id)
        for removed in merged(op.remove):
            cut_results(batch.session, number, removed)
            cut_done(batch.session, number, removed)


def _put_checkpoints(batch: Batch, ops: list[PutCheckpoint]) -> None:
    batch.session.run_many(
        "put_checkpoint",
        [
            {
                "job": batch.number(op.job_id), "task": op.index, "digest": op.state.digest, "size": op.state.size,
                "inline": op.state.data is not None, "data": op.state.data,
            }
            for op in ops
        ],
    )  # fmt: skip


def _drop_checkpoints(batch: Batch, ops: list[DropCheckpoints]) -> None:
    batch.session.run_many(
        "drop_checkpoints",
        [{"number": batch.number(op.job_id), "low": op.start, "high": op.stop} for op in ops],
    )


def _delete_jobs(batch: Batch, ops: list[DeleteJob]) -> None:
    numbers = [batch.numbers.pop(op.job_id) for op in ops if op.job_id in batch.numbers]
    batch.session.run_many("delete_job", [{"job": number} for number in numbers])


def _put_nodes(batch: Batch, ops: list[PutNode]) -> None:
    ops.sort(key=lambda op: op.spec.node_id)  # in one order, so that coordinators do not lock each other out
    batch.session.run_many(
        "put_node",
        [{"node_id": op.spec.node_id, "spec": encode(op.spec), "unix_s": op.unix_s, "state": op.state} for op in ops],
    )


def _append_logs(batch: Batch, ops: list[AppendLogs]) -> None:
    batch.session.run_many(
        "put_log",
        [{"job": batch.number(op.job_id), "seq": seq, "line": line} for op in ops for seq, line in op.lines],
    )
    for job_id, keep in {op.job_id: op.keep for op in ops}.items():
        batch.session.run("drop_logs", {"number": batch.number(job_id), "keep": keep})


def _spec_digests(spec: JobSpec) -> set[str]:
    blobs = (spec.function, spec.env.modules)
    return {str(blob.digest) for blob in blobs if blob is not None and blob.data is None}


def _covered(batch: Batch, ops: list[PutResultPage]) -> set[tuple[JobId, int]]:
    """Pages that lie in what was recorded and dropped before: repeats."""
    by_job: dict[JobId, list[PutResultPage]] = {}
    for op in ops:
        by_job.setdefault(op.job_id, []).append(op)
    places = [
        (batch.number(job_id), (min(op.start for op in pages), max(op.stop for op in pages)))
        for job_id, pages in by_job.items()
    ]
    return {
        (op.job_id, op.start)
        for pages, done in zip(by_job.values(), done_near(batch.session, places), strict=True)
        for op in pages
        if any(start <= op.start and op.stop <= stop for start, stop in done)
    }


_APPLY: Mapping[type[Op], Callable[[Batch, list[Any]], None]] = {
    CreateJob: _create_jobs,
    SetJob: _set_jobs,
    PutInputPage: _put_inputs,
    PutResultPage: _put_results,
    DropInputPages: _drop_inputs,
    DropResultPages: _drop_results,
    ReplaceResults: _replace_results,
    PutCheckpoint: _put_checkpoints,
    DropCheckpoints: _drop_checkpoints,
    DeleteJob: _delete_jobs,
    PutNode: _put_nodes,
    AppendLogs: _append_logs,
}
