"""What it takes to write to the message server's socket past the library."""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from typing import Any


@lru_cache(4096)
def publish_head(subject: str) -> bytes | None:
    """What a publication begins with; None for a subject that the library is to refuse."""
    if not subject or not subject.isprintable() or any(character.isspace() for character in subject):
        return None
    return f"PUB {subject} ".encode()


def plain_descriptor(transport: Any) -> int:
    """A descriptor of the socket, where bytes written to it are bytes that the other end reads; else -1."""
    if os.name != "posix" or transport.get_extra_info("ssl_object") is not None:
        return -1
    with contextlib.suppress(AttributeError, OSError):
        return os.dup(int(transport.get_extra_info("socket").fileno()))
    return -1
