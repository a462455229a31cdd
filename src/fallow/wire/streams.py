"""Standard streams of a process that was started without some of them: by a daemon, or a scheduler."""

from __future__ import annotations

import os
import sys


def fill_descriptors() -> None:
    """Open nothing at all in the place of those that are closed. Otherwise the next pipe or socket would have the
    number of one, and whatever is started would take it for that."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def fill_streams() -> None:
    """The same, and what is printed goes nowhere. `sys.stdin` stays None where it is: nothing was given."""
    fill_descriptors()
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
