"""nats-py's parser, for what `direct_client` does not take a shorter way."""

from __future__ import annotations

import asyncio
from typing import Any

from nats.protocol.parser import Parser


class DirectParser(Parser):
    """The library's parser, for two that give it data: one at a time, in the order in which they came."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._lock = asyncio.Lock()
        self._drivers = 0

    @property
    def is_busy(self) -> bool:
        return self._drivers > 0

    async def parse(self, data: bytes = b"") -> None:
        self._drivers += 1
        try:
            async with self._lock:
                await super().parse(data)
        finally:
            self._drivers -= 1
