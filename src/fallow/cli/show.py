"""How the program shows things: JSON for programs, tables in a terminal, aligned plain columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fallow.core.terminal import harmless

SPARKS = "▁▂▃▄▅▆▇█"


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """A table; numbers' columns are aligned right. `empty` is said where there are no rows."""
    if not rows:
        print(empty)
        return
    # Names and reasons are others' words.
    rows = [[harmless(cell) for cell in row] for row in rows]
    right = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    widths = [max(len(columns[i]), *(len(row[i]) for row in rows)) for i in range(len(columns))]
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    for number, row in enumerate([columns, *rows]):
        cells = [
            cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(row, widths, right, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        print(f"{bold}{line}{plain}" if number == 0 else line)


def _is_number(text: str) -> bool:
    return text == "" or text == "-" or text[:1].isdigit()


def counted(count: int, what: str) -> str:
    """'1 node', '3 nodes'."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def bytes_words(size: float) -> str:
    """'3.2 GB', in powers of 1024."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def duration_words(seconds: float) -> str:
    """'3.2 s', '4 min 10 s', '2 h 5 min', '3 d 4 h'."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def count_words(number: float) -> str:
    """'950', '12.3k', '4.1M'."""
    for limit, divisor, unit in ((1e4, 1.0, ""), (1e7, 1e3, "k"), (1e10, 1e6, "M")):
        if abs(number) < limit:
            scaled = number / divisor
            return f"{scaled:.0f}{unit}" if scaled >= 1000 or divisor == 1.0 else f"{scaled:.1f}{unit}"
    return f"{number / 1e9:.1f}G"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars, scaled to their highest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return SPARKS[0] * len(shown)
    return "".join(SPARKS[min(len(SPARKS) - 1, int(value / top * (len(SPARKS) - 0.001)))] for value in shown)


def progress_bar(done: int, total: int, width: int) -> str:
    """A bar of that many characters; total < 0: not known yet."""
    if total < 0:
        return "·" * width
    filled = width if total == 0 else int(width * min(done, total) / total)
    return "█" * filled + "░" * (width - filled)


def as_plain(value: object) -> Any:
    """Structs as what JSON knows, by the names of their fields (also those that travel as arrays)."""
    from enum import Enum

    from msgspec import Struct

    if isinstance(value, Struct):
        return {name: as_plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value
