"""What share of each second work may run, so that a reading (power, use, temperature) stays under its limit.

Power and use follow at once and in proportion: the next share is the one at which the limit would just be met.
Temperature follows slowly: the share is lowered by degrees above the limit and raised carefully below it.
"""

from __future__ import annotations

LEAST = 0.0
RISE = 1.25
"""A share grows at most by this factor, from one reading to the next, ..."""
RISE_LEAST = 0.02
"""... or by this, so that it leaves 0."""
AIM = 0.97
"""Readings are noisy: aim a little below the limit."""
DEGREES_SOFT = 3.0
"""So far below the limit work is let alone; nearer, the share does not grow."""
DEGREES_HARD = 5.0
"""So far above the limit nothing runs."""
PERIOD_S = 1.0
SHORTEST_S = 0.02
"""Shorter spells of work or rest are not worth a signal."""


def of_amount(duty: float, reading: float | None, limit: float, idle: float = 0.0) -> float:
    """The next share, where `reading` is the mean of the last period at `duty`, and `idle` what is drawn with no work.

    limit 0: no limit. An unknown reading holds the share: a sensor that fails for a moment is no reason to stop, nor
    to run faster."""
    if limit <= 0:
        return 1.0
    if reading is None:
        return duty
    aim = max(0.0, limit * AIM - idle)
    drawn = reading - idle
    if drawn <= 0:
        return min(1.0, max(duty * RISE, duty + RISE_LEAST))
    wanted = duty * aim / drawn
    return max(LEAST, min(1.0, wanted, max(duty * RISE, duty + RISE_LEAST)))


def of_temperature(duty: float, reading_c: float | None, limit_c: float) -> float:
    """The next share. Nothing runs DEGREES_HARD above the limit. An unknown reading lowers the share by and by: with
    no sensor, a limit that was asked for cannot be held."""
    if limit_c <= 0:
        return 1.0
    if reading_c is None:
        return duty * 0.8
    if reading_c >= limit_c + DEGREES_HARD:
        return 0.0
    if reading_c > limit_c:
        return duty * (1.0 - 0.1 * (reading_c - limit_c))
    if reading_c > limit_c - DEGREES_SOFT:
        return duty
    return min(1.0, duty + max(0.01, 0.02 * min(5.0, limit_c - DEGREES_SOFT - reading_c)))


def spells(duty: float) -> tuple[float, float]:
    """Seconds of work, then of rest, in each period. One of them is 0 where it would be too short to matter."""
    work_s = PERIOD_S * min(1.0, max(0.0, duty))
    if work_s < SHORTEST_S:
        return 0.0, PERIOD_S
    if PERIOD_S - work_s < SHORTEST_S:
        return PERIOD_S, 0.0
    return work_s, PERIOD_S - work_s


def slots_of_share(cpu_share: float, cpu_count: int, slots: int) -> int:
    """Slots that a share of all processors is enough for (at least 1): what is left over is held by duty."""
    if cpu_share <= 0:
        return slots
    needed = -(-cpu_share * cpu_count // 1)
    return max(1, min(slots, int(needed)))
