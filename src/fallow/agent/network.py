"""How fast the way to the pool is: measured briefly with its own message server, on subjects that nobody listens to."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import Any

from msgspec import Struct

from fallow.wire.address import PoolAddress

PIECE_BYTES = 128 * 1024
IN_FLIGHT = 16
CONNECT_WITHIN_S = 5.0


class Network(Struct, frozen=True):
    """Rates in bytes per second, as one connection reaches them; 0: not measured. `down_at_least`: only what was sent
    up can come down in this measurement, so that the way down may be faster."""

    round_trip_s: float = 0.0
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0
    down_at_least: bool = True
    problem: str = ""


async def measure_network(address: PoolAddress, seconds: float = 1.0) -> Network:
    """Spends about so long. What goes wrong stands in `problem`."""
    import nats
    import nats.errors

    try:
        async with asyncio.timeout(CONNECT_WITHIN_S + 1):
            client = await nats.connect(
                servers=address.urls,
                token=address.secret,
                name="fallow network measurement",
                allow_reconnect=False,
                connect_timeout=int(CONNECT_WITHIN_S),
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        return Network(problem=f"the way to the pool could not be measured: {error or type(error).__name__}")
    try:
        return await _measure(client, seconds)
    except (TimeoutError, OSError, nats.errors.Error) as error:
        return Network(problem=f"the measurement of the way to the pool broke off: {error or type(error).__name__}")
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2.0):
                await client.close()


async def _measure(client: Any, seconds: float) -> Network:
    trips = []
    for _ in range(5):
        begun = time.perf_counter()
        await client.flush(timeout=5)
        trips.append(time.perf_counter() - begun)
    piece = secrets.token_bytes(PIECE_BYTES)  # nothing on the way can press it smaller
    nobody = client.new_inbox()
    up = await _paced(client, nobody, piece, seconds / 2)

    came = asyncio.Semaphore(0)
    echo = client.new_inbox()

    async def heard(_message: Any) -> None:
        came.release()

    await client.subscribe(echo, cb=heard)
    await client.flush(timeout=5)
    back = await _echoed(client, echo, piece, came, seconds / 2)
    return Network(sorted(trips)[len(trips) // 2], up, back, down_at_least=back > 0.8 * up)


async def _paced(client: Any, subject: str, piece: bytes, seconds: float) -> float:
    """Bytes per second that the server takes: each batch is confirmed by its answer to a ping."""
    begun = time.perf_counter()
    sent = 0
    while (passed := time.perf_counter() - begun) < seconds or not sent:
        for _ in range(IN_FLIGHT if sent else 1):
            await client.publish(subject, piece)
            sent += len(piece)
        await client.flush(timeout=30)
    return sent / max(passed, time.perf_counter() - begun)


async def _echoed(client: Any, subject: str, piece: bytes, came: asyncio.Semaphore, seconds: float) -> float:
    begun = time.perf_counter()
    heard = waiting = 0
    while time.perf_counter() - begun < seconds or not heard:
        while waiting < IN_FLIGHT:
            await client.publish(subject, piece)
            waiting += 1
        async with asyncio.timeout(30):
            await came.acquire()
        waiting -= 1
        heard += 1
    return heard * len(piece) / (time.perf_counter() - begun)
