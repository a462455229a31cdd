"""Nominal identifiers. They are strings on the wire; the types keep them from being mixed up."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import NewType

PoolId = NewType("PoolId", str)
JobId = NewType("JobId", str)
NodeId = NewType("NodeId", str)
ClientId = NewType("ClientId", str)
Digest = NewType("Digest", str)
"""Lower-case hex BLAKE3 (32 bytes) of a blob's bytes; also the blob's name."""

Token = tuple[int, int]
"""Fencing token of a lease: (epoch of the job's owner, counter within it). Compared as tuples."""

CALL_TOKENS = 1 << 60
"""Counters from here on are no owner's: the client of a standing job gives them, see `call_token`."""

Interval = tuple[int, int]
"""Half-open range of task numbers [start, stop)."""

SlotKey = tuple[NodeId, int]
"""One slot of one node."""

_ID = re.compile(r"^[a-z]{1,8}-[a-z2-7]{6,40}$|^[0-9a-f]{16}$")


def new_id(prefix: str, randbytes: Callable[[int], bytes]) -> str:
    """Make an identifier such as 'job-k3v5...': 80 random bits, safe as one token of a NATS subject."""
    return f"{prefix}-{base64.b32encode(randbytes(10)).decode().rstrip('=').lower()}"


def call_token(epoch: int, index: int) -> Token:
    """Of the lease by which a client sends call `index` to a slot itself: each call is sent so once at most."""
    return epoch, CALL_TOKENS + index


def is_call_token(token: Token) -> bool:
    return token[1] >= CALL_TOKENS


def is_id(text: str) -> bool:
    """Say whether the text may stand in a subject, a path or a query as an identifier."""
    return bool(_ID.match(text))
