"""The hours of the week in which a machine is lent. Minutes count from Monday 00:00, local time."""

from __future__ import annotations

from collections.abc import Sequence

from fallow.model.lending import Hours

DAY_MIN = 24 * 60
WEEK_MIN = 7 * DAY_MIN
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def spans(hours: Sequence[Hours]) -> list[tuple[int, int]]:
    """[start, stop) in minutes of the week, in order; a stop may lie in the next week. Equal ends: a whole day."""
    found = []
    for entry in hours:
        length = (entry.stop_minute - entry.start_minute) % DAY_MIN or DAY_MIN
        found += [
            (day * DAY_MIN + entry.start_minute, day * DAY_MIN + entry.start_minute + length) for day in entry.days
        ]
    return sorted(found)


def is_open(hours: Sequence[Hours], minute: int) -> bool:
    """Whether `minute` of the week is among them. No hours at all: always."""
    return not hours or any((minute - start) % WEEK_MIN < stop - start for start, stop in spans(hours))


def minutes_to_open(hours: Sequence[Hours], minute: int) -> int | None:
    """Minutes until the hours begin; 0 within them, None where they never do."""
    if is_open(hours, minute):
        return 0
    return min(((start - minute) % WEEK_MIN for start, _ in spans(hours)), default=None)


def when_open(hours: Sequence[Hours], minute: int) -> str:
    """'18:00', 'Mon 18:00' where that is another day, 'never'."""
    wait = minutes_to_open(hours, minute)
    if wait is None:
        return "never"
    at = (minute + wait) % WEEK_MIN
    clock = f"{at % DAY_MIN // 60:02}:{at % 60:02}"
    return clock if at // DAY_MIN == minute // DAY_MIN and wait < DAY_MIN else f"{DAYS[at // DAY_MIN]} {clock}"
