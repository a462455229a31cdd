"""What all messages are."""

from __future__ import annotations

from msgspec import Struct


class Msg(Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages: arrays with the type's name in front."""
