"""Text of others, made fit for a terminal: what they print must not steer it."""

from __future__ import annotations

import re

_STEERS = re.compile(r"(\x1b\[[0-9;:]*m)|[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""Colours and weights of type are kept; all other control characters, of one or two bytes, are not."""


NAME_CHARS = 60
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


def name_words(name: str, most: int = NAME_CHARS) -> str:
    """A name that somebody else chose, fit for a line of one's own: without colours, and not for ever."""
    shown = harmless(_COLOUR.sub("", name.replace("\n", " ").replace("\r", " ")))
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def harmless(line: str) -> str:
    """A line that may be shown. Where it was written over itself (by carriage returns), its last state."""
    if line.isprintable():
        return line
    last = line.rstrip("\r\n").rpartition("\r")[2]
    return _STEERS.sub(lambda found: found[1] or "\N{REPLACEMENT CHARACTER}", last)
