"""An S3 service whose clock is wrong: a real SeaweedFS whose clock is set."""

from __future__ import annotations

import asyncio
import time

import pytest

from fallow.coordinator.s3_blobs import S3Blobs
from fallow.model.errors import PoolUnreachable, SettingError
from fallow.wire.blob_files import hash_segments
from fallow.wire.blob_http import HttpBlobs
from tests.blobs.conftest import noise
from tests.engines.seaweed import Seaweed
from tests.engines.wall_clock import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"a server's clock cannot be set here: {why_not()}"),
]


async def test_clocks_that_are_apart_are_named_and_what_waits_goes_on_once_they_are_right(seaweed: Seaweed) -> None:
    blobs = S3Blobs(seaweed.url("lab"), time.time)
    blobs.prepare("pool-a")

    async def sign(method: str, digest: str, size: int) -> str:
        return str(blobs.sign(method, digest, size))

    hasty, patient = HttpBlobs(sign, backoff_s=0.01, attempts=2), HttpBlobs(sign, backoff_s=0.05)
    data = noise(300_000, 1)
    digest, size = hash_segments([data])
    try:
        seaweed.set_clock(300)
        await hasty.put_segments(digest, size, [memoryview(data)])
        for offset_s, words in ((7200, r"119|120 min ahead of"), (-7200, r"119|120 min behind")):
            seaweed.set_clock(offset_s)
            other = noise(200_000, offset_s)
            with pytest.raises(PoolUnreachable, match=rf"clock is ({words}) the pool's coordinators'. Let both be set"):
                await hasty.put_segments(*hash_segments([other]), [memoryview(other)])
            with pytest.raises(SettingError, match="clock and the service's are too far apart"):
                blobs.size_of(digest)
            waiting = asyncio.ensure_future(patient.put_segments(*hash_segments([other]), [memoryview(other)]))
            assert not (await asyncio.wait([waiting], timeout=0.3))[0]
            seaweed.set_clock(0)
            await asyncio.wait_for(waiting, 30)
        assert blobs.size_of(digest) == size
    finally:
        seaweed.set_clock(0)
        await hasty.close()
        await patient.close()
