"""Which cached things go: the ones used longest ago first, never one that is in use."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct


class Kept(Struct, frozen=True):
    """A thing in a cache. `kind`: 'environment', 'modules', 'data'."""

    kind: str
    name: str
    path: str
    size_bytes: int
    used_unix_s: float
    in_use: bool = False


def over_limit(kept: Iterable[Kept], other_bytes: int, limit_bytes: int) -> list[Kept]:
    """What to remove so that all together, with `other_bytes` that cannot be removed, is at most the limit; 0: none."""
    found = sorted(kept, key=lambda one: (one.used_unix_s, one.path))
    total = other_bytes + sum(one.size_bytes for one in found)
    going: list[Kept] = []
    if limit_bytes <= 0:
        return going
    for one in found:
        if total <= limit_bytes:
            break
        if not one.in_use:
            going.append(one)
            total -= one.size_bytes
    return going


def unused_since(kept: Iterable[Kept], unix_s: float) -> list[Kept]:
    """What was not used since then."""
    return [one for one in kept if not one.in_use and one.used_unix_s <= unix_s]
