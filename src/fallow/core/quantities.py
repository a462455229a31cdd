"""Quantities as people write them, with their units: '20 GB', '5 MB/s', '3 min', '25 %', '85 C', 'mon-fri 18:00-08:00'.

Readers raise ValueError whose words say what is expected; writers give text that the readers read back.
"""

from __future__ import annotations

import re

from fallow.model.lending import Hours

_NUMBER = re.compile(r"\s*([0-9]+(?:[.,][0-9]+)?)\s*([^\s0-9].*?)?\s*")
_SIZES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE_NAMES = ("TB", "TiB", "GB", "GiB", "MB", "MiB", "KB", "KiB")
_BITS = {"kbit": 10**3 / 8, "mbit": 10**6 / 8, "gbit": 10**9 / 8}
_TIMES = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "seconds": 1,
    "min": 60,
    "minute": 60,
    "minutes": 60,
    "h": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "day": 86400,
    "days": 86400,
}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_HOURS = re.compile(r"\s*(?:([a-z,\s-]+?)\s+)?(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*")


def _split(text: str, expected: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"expected {expected}")
    return float(match[1].replace(",", ".")), (match[2] or "").lower()


def read_size(text: str) -> int:
    """Bytes: '20 GB' (powers of 1000), '16 GiB' (powers of 1024); '0' needs no unit."""
    expected = "a size with its unit, such as '20 GB' or '512 MiB'"
    number, unit = _split(text, expected)
    if unit == "" and number == 0:
        return 0
    if unit not in _SIZES:
        raise ValueError(f"expected {expected}{_unit_words(unit)}")
    return round(number * _SIZES[unit])


def read_rate(text: str) -> int:
    """Bytes per second: '5 MB/s' or '40 Mbit/s'; '0' needs no unit."""
    expected = "a rate with its unit, such as '5 MB/s' or '40 Mbit/s'"
    number, unit = _split(text, expected)
    if unit == "" and number == 0:
        return 0
    name = unit.removesuffix("/s").removesuffix("ps").strip()
    factor = _BITS.get(name) or (_SIZES.get(name) if unit.endswith("/s") else None)
    if factor is None:
        raise ValueError(f"expected {expected}{_unit_words(unit)}")
    return round(number * factor)


def read_time(text: str) -> float:
    """Seconds: '90 s', '3 min', '2 h', '7 d', '1 h 30 min'; '0' needs no unit."""
    expected = "a time with its unit, such as '90 s', '3 min' or '2 h'"
    if text.strip() == "0":
        return 0.0
    parts = re.findall(r"([0-9]+(?:[.,][0-9]+)?)\s*([a-zA-Z]*)", text)
    if not parts or re.sub(r"([0-9]+(?:[.,][0-9]+)?)\s*([a-zA-Z]*)\s*", "", text.strip()):
        raise ValueError(f"expected {expected}")
    total = 0.0
    for number, unit in parts:
        if unit.lower() not in _TIMES:
            raise ValueError(f"expected {expected}{_unit_words(unit)}")
        total += float(number.replace(",", ".")) * _TIMES[unit.lower()]
    return total


def read_share(text: str) -> float:
    """Between 0 and 1: '25 %'."""
    expected = "a share between '0 %' and '100 %'"
    number, unit = _split(text, expected)
    if (unit == "" and number != 0) or unit not in ("%", "") or not 0 <= number <= 100:
        raise ValueError(f"expected {expected}")
    return number / 100


def read_degrees(text: str) -> float:
    """Degrees Celsius: '85 C', '85 °C' or '185 F'; '0' needs no unit."""
    expected = "a temperature with its unit, such as '85 C'"
    number, unit = _split(text, expected)
    unit = unit.removeprefix("°").strip()
    if unit == "" and number == 0:
        return 0.0
    if unit == "f":
        return (number - 32) / 1.8
    if unit != "c":
        raise ValueError(f"expected {expected}{_unit_words(unit)}")
    return number


def read_watts(text: str) -> float:
    """Watts: '200 W'; '0' needs no unit."""
    expected = "a power with its unit, such as '200 W'"
    number, unit = _split(text, expected)
    if (unit == "" and number != 0) or unit not in ("w", "watt", "watts", "kw", ""):
        raise ValueError(f"expected {expected}{_unit_words(unit)}")
    return number * (1000 if unit == "kw" else 1)


def read_hours(text: str) -> Hours:
    """'mon-fri 18:00-08:00', 'sat,sun 00:00-24:00', '22:00-06:00' (every day). Past midnight where the end lies
    before the start."""
    expected = "days and times such as 'mon-fri 18:00-08:00', 'sat,sun 00:00-24:00' or '22:00-06:00'"
    match = _HOURS.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"expected {expected}")
    start, stop = (_minute(match[at], match[at + 1]) for at in (2, 4))
    if start is None or stop is None or start in (stop, _DAY_MINUTES):
        raise ValueError(f"expected {expected}, with two different times between 00:00 and 24:00")
    days = _days(match[1]) if match[1] else tuple(range(7))
    if not days:
        raise ValueError(f"expected {expected}; the days are {', '.join(DAYS)}")
    return Hours(days, start, stop)


def _minute(hour: str, minute: str) -> int | None:
    whole = int(hour) * 60 + int(minute)
    return whole if int(minute) < 60 and whole <= _DAY_MINUTES else None


def _days(text: str) -> tuple[int, ...]:
    """Numbers of the days; none where one is not a day."""
    found: set[int] = set()
    for part in text.split(","):
        ends = [end.strip()[:3] for end in part.split("-")]
        if len(ends) > 2 or any(end not in DAYS for end in ends):
            return ()
        first, last = DAYS.index(ends[0]), DAYS.index(ends[-1])
        found |= {(first + step) % 7 for step in range((last - first) % 7 + 1)}
    return tuple(sorted(found))


def _unit_words(unit: str) -> str:
    return f"; {unit!r} is no such unit" if unit else "; there is no unit"


# ---------------------------------------------------------------- writing


def write_size(size_bytes: float) -> str:
    """'20 GB', '1 GiB': whichever unit gives the shortest exact number, else a rounded one."""
    if not size_bytes:
        return "0"
    best = f"{round(size_bytes)} B"
    for name in _SIZE_NAMES:
        number = size_bytes / _SIZES[name.lower()]
        if number >= 1:
            text = f"{_plain(number)} {name}"
            if read_size(text) == size_bytes and len(text) < len(best):
                best = text
    return best


def size_words(size_bytes: float) -> str:
    """'12.4 GB': rounded, in powers of 1000 as disks are sold."""
    number, unit = float(size_bytes), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"


def write_rate(bytes_per_s: float) -> str:
    return f"{write_size(bytes_per_s)}/s" if bytes_per_s else "0"


def write_time(seconds: float) -> str:
    """'3 min', '1.5 s', '1 h 30 min'."""
    if seconds < 60 or seconds != int(seconds):
        return f"{_plain(seconds)} s"
    parts = []
    left = int(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length:
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts)


def write_share(share: float) -> str:
    return f"{_plain(share * 100)} %"


def write_degrees(degrees_c: float) -> str:
    return f"{_plain(degrees_c)} C" if degrees_c else "0"


def write_watts(power_w: float) -> str:
    return f"{_plain(power_w)} W" if power_w else "0"


def write_hours(hours: Hours) -> str:
    days = "" if hours.days == tuple(range(7)) else f"{_day_words(hours.days)} "
    return f"{days}{_clock(hours.start_minute)}-{_clock(hours.stop_minute)}"


def _day_words(days: tuple[int, ...]) -> str:
    runs: list[list[int]] = []
    for day in days:
        if runs and day == runs[-1][-1] + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(DAYS[run[0]] if len(run) == 1 else f"{DAYS[run[0]]}-{DAYS[run[-1]]}" for run in runs)


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _plain(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")
