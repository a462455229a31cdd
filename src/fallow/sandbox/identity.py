"""Whom a sandboxed program runs as on the host: the agent's user, or, for root, a user that nothing else is."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NamedTuple

from fallow.model.errors import SandboxUnavailable

FIRST_USER, USERS = 2_000_000_000, 100_000_000
"""Above what systemd, containers and directories of users hand out. One for each sandbox, drawn at random, so that two
cannot signal each other nor share a limit."""
NOBODY = 65534


class Identity(NamedTuple):
    """`changed`: the agent is root, and the program must become this user."""

    user: int
    group: int
    changed: bool


def own_identity() -> Identity:
    """The agent's."""
    return Identity(os.geteuid(), os.getegid(), False)


def choose_identity() -> Identity:
    """Raises SandboxUnavailable where the agent is root and no other user can be had."""
    if os.geteuid() != 0:
        return own_identity()
    for number in (FIRST_USER + secrets.randbelow(USERS), NOBODY):
        if _mapped(number, "uid_map") and _mapped(number, "gid_map"):
            return Identity(number, number, True)
    raise SandboxUnavailable(
        "The agent runs as root in a user namespace that has no other users.",
        "Start it as a plain user, or map more users into the container.",
    )


def _mapped(number: int, name: str) -> bool:
    for line in Path(f"/proc/self/{name}").read_text().splitlines():
        first, _, count = (int(word) for word in line.split())
        if first <= number < first + count:
            return True
    return False
