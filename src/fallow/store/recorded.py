"""What is recorded of a job: dropped pages as merged intervals, and taking tasks out of both again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from fallow.model.ids import Interval
from fallow.store.database import Session

_encode = msgspec.msgpack.Encoder().encode
_decode_failed = msgspec.msgpack.Decoder(tuple[int, ...]).decode


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


def done_near(session: Session, places: Sequence[tuple[int, Interval]]) -> list[list[Interval]]:
    """Dropped intervals that meet or touch each of these (number of a job, interval)."""
    rows = [{"number": number, "low": interval[0], "high": interval[1]} for number, interval in places]
    return [
        [(start, stop) for start, stop in found if stop >= interval[0]]
        for found, (_, interval) in zip(session.run_each("done_near", rows), places, strict=True)
    ]


def _set_done(session: Session, changes: Mapping[int, tuple[Collection[Interval], Sequence[Interval]]]) -> None:
    """Old and new intervals by a job's number."""
    old = [{"number": number, "old_start": start} for number, (gone, _) in changes.items() for start, _ in sorted(gone)]
    new = [
        {"job": number, "start": start, "stop": stop} for number, (_, come) in changes.items() for start, stop in come
    ]
    session.run_many("remove_done", old)
    session.run_many("add_done", new)


def add_done(session: Session, added: Mapping[int, Sequence[Interval]]) -> None:
    """Remember intervals as done, by the number of their job."""
    places = [(number, interval) for number, intervals in added.items() for interval in intervals]
    near: dict[int, set[Interval]] = {number: set() for number in added}
    for (number, _), found in zip(places, done_near(session, places), strict=True):
        near[number].update(found)
    _set_done(
        session, {number: (near[number], merged([*near[number], *intervals])) for number, intervals in added.items()}
    )


def cut_done(session: Session, number: int, removed: Interval) -> None:
    """Take an interval out of what was dropped."""
    start, stop = removed
    near = done_near(session, [(number, removed)])[0]
    met = [(low, high) for low, high in near if low < stop and high > start]
    rest = [part for low, high in met for part in ((low, start), (stop, high)) if part[0] < part[1]]
    _set_done(session, {number: (met, rest)})


def cut_results(session: Session, number: int, removed: Interval) -> None:
    """Take an interval out of the recorded pages: one that meets it is cut, or split in two."""
    near = session.run("results_near", {"number": number, "low": removed[0], "high": removed[1]})
    for start, stop, failed_count, encoded in near:
        whole = (start, stop)
        if start >= removed[1] or stop <= removed[0]:
            continue
        failed = _decode_failed(encoded) if encoded else ()
        rows: list[dict[str, object]] = []
        for part in ((start, removed[0]), (removed[1], stop)):
            if part[0] < part[1]:
                count, named = cut_failed(part, whole, removed, failed_count, failed)
                rows.append(
                    {
                        "number": number, "old_start": start, "new_start": part[0], "new_stop": part[1],
                        "new_failed_count": count, "new_failed": _encode(named) if named else None,
                    }
                )  # fmt: skip
        # The copy comes first: it reads the row that the cut changes.
        session.run_many("copy_result", rows[1:])
        session.run_many("cut_result", rows[:1])
        if not rows:
            session.run("remove_result", {"number": number, "old_start": start})
