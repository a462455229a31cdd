"""What a program may write of the host, and how much of that must be looked at."""

from __future__ import annotations

from typing import NamedTuple

from fallow.sandbox.identity import Identity
from fallow.sandbox.protocol import Program
from fallow.sandbox.spawner import spawner


class Watched(NamedTuple):
    """As a Watch wants it."""

    folders: tuple[str, ...]
    disk_bytes: int
    bounded: frozenset[int]
    """Devices of file systems that end by themselves."""


def hand_over(program: Program, identity: Identity) -> None:
    """Folders that may be written become the program's user's. Raises OSError."""
    writable = [mount.source for mount in program.mounts if mount.writable]
    spawner().hand_over(writable, identity.user, identity.group)


def watched(program: Program, memory_bounded: bool) -> Watched:
    """`memory_bounded`: by a control group, which holds file systems in memory too."""
    writable = [mount for mount in program.mounts if mount.writable]
    folders = tuple(mount.source for mount in writable if not mount.bounded)
    bounded = frozenset(mount.bounded for mount in writable if mount.bounded)
    needed = folders or not (bounded and memory_bounded)
    return Watched(folders, program.limits.disk_bytes if needed else 0, bounded)
