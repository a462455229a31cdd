"""Holds the rates at which data come and go."""

from __future__ import annotations

import asyncio
import time

from fallow.core.bucket import Bucket, take, with_rate

PIECE_BYTES = 64 * 1024
"""Under a limit, transfers go in pieces of this size, so that they are even."""


class Throttle:
    """Both directions of one node; all transfers share it. 0: no limit."""

    def __init__(self, up_bytes_per_s: float = 0.0, down_bytes_per_s: float = 0.0) -> None:
        self._up = Bucket(up_bytes_per_s)
        self._down = Bucket(down_bytes_per_s)

    def set_rates(self, up_bytes_per_s: float, down_bytes_per_s: float) -> None:
        """From now on."""
        self._up = with_rate(self._up, up_bytes_per_s)
        self._down = with_rate(self._down, down_bytes_per_s)

    @property
    def limits(self) -> bool:
        return self._up.rate_per_s > 0 or self._down.rate_per_s > 0

    def spend_up(self, size: int) -> float:
        """Seconds until so many bytes may go."""
        self._up, wait_s = take(self._up, size, time.monotonic())
        return wait_s

    def spend_down(self, size: int) -> float:
        """So many bytes came: seconds until more may."""
        self._down, wait_s = take(self._down, size, time.monotonic())
        return wait_s

    def down_wait_s(self) -> float:
        """Seconds until more may come."""
        return take(self._down, 0.0, time.monotonic())[1]

    async def sent(self, size: int) -> None:
        """Wait until so many bytes may go."""
        wait_s = self.spend_up(size)
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def received(self, size: int) -> None:
        """So many bytes came: wait before more are read."""
        wait_s = self.spend_down(size)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
