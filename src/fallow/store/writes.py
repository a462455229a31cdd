"""What each operation of store.protocol does to the tables, inside one transaction that the caller holds.

Consecutive operations of one kind are applied together (executemany). Statements are built once and compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, Insert, bindparam, delete, func, insert, select, update

from fallow.model.ids import JobId
from fallow.model.job import JobSpec
from fallow.model.states import JobState
from fallow.store import tables
from fallow.store.ownership import Batch
from fallow.store.protocol import (
    AppendLogs,
    CreateJob,
    DeleteJob,
    DropInputPages,
    DropResultPages,
    Op,
    PutInputPage,
    PutNode,
    PutResultPage,
    ReplaceResults,
    SetJob,
)
from fallow.store.recorded import add_done, cut_done, cut_results, done_near, merged

encode = msgspec.msgpack.Encoder().encode

_jobs, _results, _inputs = tables.jobs.c, tables.result_pages.c, tables.input_pages.c

_SET = (
    update(tables.jobs)
    .where(_jobs.number == bindparam("job"))
    .values(
        {
            name: func.coalesce(bindparam(f"new_{name}", type_=_jobs[name].type), _jobs[name])
            for name in SetJob.__struct_fields__[2:]
        }
    )
)
_SET_BELOW = update(tables.jobs).where(_jobs.number == bindparam("job")).values(inputs_below=bindparam("below"))
_DELETE_JOB = delete(tables.jobs).where(_jobs.number == bindparam("job_number"))

_DROP_INPUTS = delete(tables.input_pages).where(
    _inputs.job == bindparam("job_number"), _inputs.start < bindparam("below"), _inputs.stop <= bindparam("below")
)

_BELOW_INDEX = (
    _results.job == bindparam("job_number"),
    _results.start < bindparam("below"),
    _results.stop <= bindparam("below"),
)
_BELOW_SEQ = (_results.job == bindparam("job_number"), _results.seq < bindparam("below"))
_DROPPED = {
    by: (
        select(_results.start, _results.stop).where(*condition).order_by(_results.start),
        delete(tables.result_pages).where(*condition),
    )
    for by, condition in (("index", _BELOW_INDEX), ("seq", _BELOW_SEQ))
}

_DROP_LOGS = delete(tables.logs).where(
    tables.logs.c.job == bindparam("job_number"),
    tables.logs.c.seq
    <= select(tables.logs.c.seq)
    .where(tables.logs.c.job == bindparam("job_number"))
    .order_by(tables.logs.c.seq.desc())
    .limit(1)
    .offset(bindparam("keep"))
    .scalar_subquery(),
)


class _Rows:
    """An insert of many rows. Goes past SQLAlchemy's handling of parameters, which costs more than the insert:
    rows are tuples in the order of the table's columns, of types that the driver takes as they are."""

    def __init__(self, statement: Insert) -> None:
        self._columns = [column.name for column in statement.table.columns]
        self._statement = statement
        self._text = ""

    def insert(self, connection: Connection, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        if not self._text:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=self._columns)
            if compiled.positiontup != self._columns:
                raise AssertionError("the engine must be made with a positional paramstyle")
            self._text = str(compiled)
        connection.exec_driver_sql(self._text, rows)


class Writes:
    """Applies operations over a connection inside a transaction. `insert_ignore`: the dialect's insert that
    leaves a row alone that is there; `upsert_node`: its insert-or-replace of a node."""

    def __init__(self, insert_ignore: Callable[[Any], Insert], upsert_node: Insert) -> None:
        self._put_job = insert_ignore(tables.jobs)
        self._put_spec = insert_ignore(tables.job_specs)
        self._put_blob = insert_ignore(tables.job_blobs)
        self._put_input = _Rows(insert_ignore(tables.input_pages))
        self._put_result = _Rows(insert_ignore(tables.result_pages))
        self._put_log = _Rows(insert_ignore(tables.logs))
        self._put_node = upsert_node

    def apply(self, connection: Connection, ops: Sequence[Op]) -> None:
        """Apply in order. Raises OwnershipLost; the caller then rolls back."""
        batch = Batch(connection, ops)
        for kind, group in groupby(batch.ops, type):
            _APPLY[kind](self, batch, list(group))

    def _create_jobs(self, batch: Batch, ops: list[CreateJob]) -> None:
        for op in ops:
            spec = op.spec
            if spec.job_id in batch.numbers:
                continue
            result = batch.connection.execute(
                insert(tables.jobs),
                {
                    "job_id": spec.job_id, "name": spec.name, "state": JobState.OPEN.value, "owner": op.owner,
                    "epoch": 1, "reason": "", "total": -1, "created_unix_s": op.unix_s, "ended_unix_s": 0.0,
                    "nodes": encode({}), "input_error": "", "consumed": 0, "retried": 0, "inputs_below": 0,
                },
            )  # fmt: skip
            key = result.inserted_primary_key
            assert key is not None
            number = int(key[0])
            batch.numbers[spec.job_id] = number
            batch.connection.execute(self._put_spec, {"job": number, "spec": encode(spec)})
            if digests := _spec_digests(spec):
                batch.connection.execute(self._put_blob, [{"job": number, "digest": digest} for digest in digests])

    def _set_jobs(self, batch: Batch, ops: list[SetJob]) -> None:
        rows = []
        for op in ops:
            row: dict[str, Any] = {f"new_{name}": getattr(op, name) for name in SetJob.__struct_fields__[2:]}
            row["new_state"] = None if op.state is None else op.state.value
            row["new_nodes"] = None if op.nodes is None else encode(op.nodes)
            row["job"] = batch.number(op.job_id)
            rows.append(row)
        batch.connection.execute(_SET, rows)

    def _put_inputs(self, batch: Batch, ops: list[PutInputPage]) -> None:
        self._put_input.insert(
            batch.connection,
            [
                (
                    batch.number(op.job_id), op.start, op.stop,
                    op.page.digest, op.page.size, op.page.data is not None, op.page.data,
                )
                for op in ops
                if op.stop > batch.inputs_below.get(op.job_id, 0)
            ],
        )  # fmt: skip

    def _put_results(self, batch: Batch, ops: list[PutResultPage]) -> None:
        covered = _covered(batch, ops)
        self._put_result.insert(
            batch.connection,
            [
                (
                    batch.number(op.job_id), op.start, op.stop, op.seq, op.page_start, op.failed_count,
                    encode(op.failed) if op.failed else None, encode(op.fault) if op.fault else None, op.node,
                    op.page.digest, op.page.size, op.page.data is not None or op.fault is not None, op.page.data,
                )
                for op in ops
                if (op.job_id, op.start) not in covered
            ],
        )  # fmt: skip

    def _drop_inputs(self, batch: Batch, ops: list[DropInputPages]) -> None:
        below = {op.job_id: op.below for op in sorted(ops, key=lambda op: op.below)}
        for job_id, bound in below.items():
            if bound <= batch.inputs_below.get(job_id, 0):
                continue
            number = batch.number(job_id)
            batch.connection.execute(_DROP_INPUTS, {"job_number": number, "below": bound})
            batch.connection.execute(_SET_BELOW, {"job": number, "below": bound})
            batch.inputs_below[job_id] = bound

    def _drop_results(self, batch: Batch, ops: list[DropResultPages]) -> None:
        for by, bounds in (
            ("index", {op.job_id: op.below for op in sorted(ops, key=lambda op: op.below)}),
            ("seq", {op.job_id: op.below_seq for op in sorted(ops, key=lambda op: op.below_seq)}),
        ):
            find, remove = _DROPPED[by]
            for job_id, below in bounds.items():
                if below <= 0:
                    continue
                values = {"job_number": batch.number(job_id), "below": below}
                gone = [(int(start), int(stop)) for start, stop in batch.connection.execute(find, values)]
                if gone:
                    batch.connection.execute(remove, values)
                    add_done(batch.connection, values["job_number"], merged(gone))

    def _replace_results(self, batch: Batch, ops: list[ReplaceResults]) -> None:
        for op in ops:
            number = batch.number(op.job_id)
            for removed in merged(op.remove):
                cut_results(batch.connection, number, removed)
                cut_done(batch.connection, number, removed)

    def _delete_jobs(self, batch: Batch, ops: list[DeleteJob]) -> None:
        numbers = [batch.numbers.pop(op.job_id) for op in ops if op.job_id in batch.numbers]
        if numbers:
            batch.connection.execute(_DELETE_JOB, [{"job_number": number} for number in numbers])

    def _put_nodes(self, batch: Batch, ops: list[PutNode]) -> None:
        batch.connection.execute(
            self._put_node,
            [
                {"node_id": op.spec.node_id, "spec": encode(op.spec), "unix_s": op.unix_s, "state": op.state}
                for op in ops
            ],
        )

    def _append_logs(self, batch: Batch, ops: list[AppendLogs]) -> None:
        self._put_log.insert(
            batch.connection, [(batch.number(op.job_id), seq, line) for op in ops for seq, line in op.lines]
        )
        for job_id, keep in {op.job_id: op.keep for op in ops}.items():
            batch.connection.execute(_DROP_LOGS, {"job_number": batch.number(job_id), "keep": keep})


def _spec_digests(spec: JobSpec) -> set[str]:
    blobs = (spec.function, spec.env.modules)
    return {str(blob.digest) for blob in blobs if blob is not None and blob.data is None}


def _covered(batch: Batch, ops: list[PutResultPage]) -> set[tuple[JobId, int]]:
    """Pages that lie in what was recorded and dropped before: repeats."""
    covered: set[tuple[JobId, int]] = set()
    for job_id, group in groupby(sorted(ops, key=lambda op: op.job_id), lambda op: op.job_id):
        pages = list(group)
        done = done_near(
            batch.connection, batch.number(job_id), (min(op.start for op in pages), max(op.stop for op in pages))
        )
        if done:
            covered |= {
                (job_id, op.start) for op in pages if any(start <= op.start and op.stop <= stop for start, stop in done)
            }
    return covered


_APPLY: Mapping[type[Op], Callable[[Writes, Batch, list[Any]], None]] = {
    CreateJob: Writes._create_jobs,
    SetJob: Writes._set_jobs,
    PutInputPage: Writes._put_inputs,
    PutResultPage: Writes._put_results,
    DropInputPages: Writes._drop_inputs,
    DropResultPages: Writes._drop_results,
    ReplaceResults: Writes._replace_results,
    DeleteJob: Writes._delete_jobs,
    PutNode: Writes._put_nodes,
    AppendLogs: Writes._append_logs,
}
