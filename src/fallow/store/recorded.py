"""What is recorded of a job: dropped pages as merged intervals, and taking tasks out of both again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from fallow.model.ids import Interval
from fallow.store import tables

_encode = msgspec.msgpack.Encoder().encode
_decode_failed = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_done, _results = tables.done_intervals.c, tables.result_pages.c

_CUT_RESULT = (
    update(tables.result_pages)
    .where(_results.job == bindparam("job_number"), _results.start == bindparam("old_start"))
    .values(
        start=bindparam("new_start"),
        stop=bindparam("new_stop"),
        failed_count=bindparam("new_count"),
        failed=bindparam("new_failed"),
    )
)
_COPY_RESULT = insert(tables.result_pages).from_select(
    [column.name for column in tables.result_pages.columns],
    select(
        *(
            {
                "start": bindparam("new_start", type_=_results.start.type),
                "stop": bindparam("new_stop", type_=_results.stop.type),
                "failed_count": bindparam("new_count", type_=_results.failed_count.type),
                "failed": bindparam("new_failed", type_=_results.failed.type),
            }.get(column.name, column)
            for column in tables.result_pages.columns
        )
    ).where(_results.job == bindparam("job_number"), _results.start == bindparam("old_start")),
)
_REMOVE_RESULT = delete(tables.result_pages).where(
    _results.job == bindparam("job_number"), _results.start == bindparam("old_start")
)

_DONE_DELETE = delete(tables.done_intervals).where(
    _done.job == bindparam("job_number"), _done.start == bindparam("old_start")
)
_DONE_INSERT = insert(tables.done_intervals)


def _near(table: Any, *columns: Any) -> Any:
    """Rows of a job that may meet [low, high]: those that start in it, and the last one that starts before it."""
    start = table.c.start
    before = select(func.max(start)).where(table.c.job == bindparam("job_number"), start <= bindparam("low"))
    return (
        select(*columns)
        .where(
            table.c.job == bindparam("job_number"),
            start >= func.coalesce(before.scalar_subquery(), bindparam("low")),
            start <= bindparam("high"),
        )
        .order_by(start)
    )


_DONE_NEAR = _near(tables.done_intervals, _done.start, _done.stop)
_RESULTS_NEAR = _near(tables.result_pages, _results.start, _results.stop, _results.failed_count, _results.failed)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Sorted, disjoint intervals of the same union; those that touch become one."""
    union: list[Interval] = []
    for start, stop in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], stop))
        elif start < stop:
            union.append((start, stop))
    return union


def cut_failed(
    part: Interval, whole: Interval, removed: Interval, count: int, failed: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """Failed tasks of `part`, one of the two that remain of a page's interval `whole` without `removed`.

    The list may have been cut at its bound: what it does not name comes after what it names, and only failed
    tasks are taken out, so the number stays right as a sum though its place is a guess (the last part)."""
    inside = tuple(index for index in failed if part[0] <= index < part[1])
    unnamed = count - len(failed)
    if unnamed > 0 and part[1] == (whole[1] if removed[1] < whole[1] else removed[0]):
        last = failed[-1] if failed else whole[0] - 1
        taken = max(0, min(removed[1], whole[1]) - max(removed[0], last + 1))
        return len(inside) + max(0, unnamed - taken), inside
    return len(inside), inside


def done_near(connection: Connection, number: int, interval: Interval) -> list[Interval]:
    values = {"job_number": number, "low": interval[0], "high": interval[1]}
    return [(start, stop) for start, stop in connection.execute(_DONE_NEAR, values) if stop >= interval[0]]


def _set_done(connection: Connection, number: int, old: Sequence[Interval], new: Sequence[Interval]) -> None:
    if old:
        connection.execute(_DONE_DELETE, [{"job_number": number, "old_start": start} for start, _ in old])
    if new:
        connection.execute(_DONE_INSERT, [{"job": number, "start": start, "stop": stop} for start, stop in new])


def add_done(connection: Connection, number: int, added: Sequence[Interval]) -> None:
    for interval in added:
        near = done_near(connection, number, interval)
        _set_done(connection, number, near, merged([*near, interval]))


def cut_done(connection: Connection, number: int, removed: Interval) -> None:
    start, stop = removed
    met = [(low, high) for low, high in done_near(connection, number, removed) if low < stop and high > start]
    rest = [part for low, high in met for part in ((low, start), (stop, high)) if part[0] < part[1]]
    _set_done(connection, number, met, rest)


def cut_results(connection: Connection, number: int, removed: Interval) -> None:
    values = {"job_number": number, "low": removed[0], "high": removed[1]}
    for row in connection.execute(_RESULTS_NEAR, values).all():
        whole = (row.start, row.stop)
        if whole[0] >= removed[1] or whole[1] <= removed[0]:
            continue
        failed = _decode_failed(row.failed) if row.failed else ()
        parts = [part for part in ((whole[0], removed[0]), (removed[1], whole[1])) if part[0] < part[1]]
        rows: list[Mapping[str, Any]] = []
        for part in parts:
            count, named = cut_failed(part, whole, removed, row.failed_count, failed)
            rows.append(
                {
                    "job_number": number, "old_start": whole[0], "new_start": part[0], "new_stop": part[1],
                    "new_count": count, "new_failed": _encode(named) if named else None,
                }
            )  # fmt: skip
        # The copy comes first: it reads the row that the cut changes.
        for row_values in rows[1:]:
            connection.execute(_COPY_RESULT, row_values)
        connection.execute(_CUT_RESULT if rows else _REMOVE_RESULT, rows[0] if rows else {
            "job_number": number, "old_start": whole[0],
        })  # fmt: skip
