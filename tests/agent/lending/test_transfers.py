"""Blobs that come to a machine: at the rate that is lent, and onto a disk that fills up."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fallow.agent.blob_access import BlobAccess
from fallow.agent.caches import Caches
from fallow.agent.limits.bandwidth import Throttle
from fallow.agent.limits.disk import Disk
from fallow.model.errors import PoolRefused
from fallow.model.job import Blob
from fallow.wire.blob_http import HttpBlobs
from fallow.wire.blobs import BlobClient
from tests.blobs.conftest import Served
from tests.small_disk import small_disk_at

MB = 1_000_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path / "store")
    await served.server.start("127.0.0.1", 0)
    yield served
    await served.end()


class Access(BlobAccess):
    """Of a store that is known."""

    def __init__(self, served: Served, cache: Path) -> None:
        super().__init__(lambda: None, cache)
        self._served = served

    async def _open(self) -> BlobClient:
        return BlobClient(None, HttpBlobs(self._served.sign, backoff_s=0.01, pace=self.pace))


async def put(served: Served, size: int) -> Blob:
    return await served.client().put_segments([os.urandom(size)])


async def test_the_rates_hold_for_all_transfers(served: Served, tmp_path: Path) -> None:
    access = Access(served, tmp_path / "cache")
    access.pace = Throttle(up_bytes_per_s=2 * MB, down_bytes_per_s=2 * MB)
    blob = await put(served, MB)
    begun = time.monotonic()
    path = await access.path(blob.digest, blob.size)
    assert time.monotonic() - begun >= 0.2, "1 MB at 2 MB/s, less what may come at once"
    client = await access.client()
    fresh = tmp_path / "fresh"
    fresh.write_bytes(os.urandom(MB))
    begun = time.monotonic()
    await client.put_file(fresh)
    assert time.monotonic() - begun >= 0.2
    assert path.stat().st_size == MB
    await access.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    with small_disk_at(tmp_path / "disk", 8) as folder:
        yield folder


def age(path: Path) -> None:
    """It was last used long ago."""
    then = time.time() - 10_000
    os.utime(path, (then, then))


def lending(served: Served, home: Path, limit: int) -> Access:
    access = Access(served, home / "blobs")
    disk = Disk(home, Caches(home, frozenset), reserve_bytes=MB)
    access.make_room = lambda size: disk.make_room(size, limit)
    return access


async def test_a_full_disk_is_freed_of_what_was_used_longest_ago(served: Served, small_disk: Path) -> None:
    access = lending(served, small_disk, limit=0)
    first, second, third = [await put(served, 3 * MB) for _ in range(3)]
    age(old := await access.path(first.digest, first.size))
    kept = await access.path(second.digest, second.size)
    fetched = await access.path(third.digest, third.size)
    assert not old.exists()
    assert kept.exists(), "it was used a moment ago"
    assert fetched.stat().st_size == third.size
    await access.close()


async def test_what_cannot_be_had_is_said_and_leaves_nothing(served: Served, small_disk: Path) -> None:
    access = lending(served, small_disk, limit=0)
    (small_disk / "of-the-owner").write_bytes(os.urandom(6 * MB))
    blob = await put(served, 3 * MB)
    with pytest.raises(PoolRefused, match=r"is full: .* are free, 3\.0 MB and a reserve of 1\.0 MB are needed"):
        await access.path(blob.digest, blob.size)
    assert list(small_disk.glob("blobs/*")) == []
    (small_disk / "of-the-owner").unlink()
    assert (await access.path(blob.digest, blob.size)).exists(), "asked again, it comes"
    await access.close()


async def test_the_lent_disk_is_a_limit_of_its_own(served: Served, tmp_path: Path) -> None:
    access = lending(served, tmp_path / "home", limit=5 * MB)
    (tmp_path / "home").mkdir()
    first, second, large = await put(served, 3 * MB), await put(served, 3 * MB), await put(served, 6 * MB)
    path = await access.path(first.digest, first.size)
    with pytest.raises(PoolRefused, match=r"5\.0 MB of disk that this machine lends are full"):
        await access.path(second.digest, second.size)
    age(path)
    assert (await access.path(second.digest, second.size)).exists()
    assert not path.exists()
    with pytest.raises(PoolRefused, match=r"do not fit into the 5\.0 MB"):
        await access.path(large.digest, large.size)
    await access.close()


async def test_a_disk_that_fills_while_a_blob_is_written(served: Served, small_disk: Path) -> None:
    """Somebody else writes meanwhile: what is half goes, and the refusal says what to do."""
    access = lending(served, small_disk, limit=0)
    made: list[int] = []

    async def room_that_is_taken(size: int) -> None:
        made.append(size)
        if len(made) == 1:
            (small_disk / "of-the-owner").write_bytes(os.urandom(6 * MB))

    access.make_room = room_that_is_taken
    blob = await put(served, 4 * MB)
    with pytest.raises(PoolRefused, match="is full"):
        await access.path(blob.digest, blob.size)
    assert made == [4 * MB, 4 * MB], "room was asked for once more"
    assert list((small_disk / "blobs").iterdir()) == []
    await access.close()


async def test_a_cache_that_nobody_bounds_gives_way_to_what_is_needed_now(served: Served, small_disk: Path) -> None:
    access = lending(served, small_disk, limit=0)
    access.make_room = None
    first, second, third = [await put(served, 3 * MB) for _ in range(3)]
    old = await access.path(first.digest, first.size)
    age(old)
    kept = await access.path(second.digest, second.size)
    fetched = await access.path(third.digest, third.size)
    assert (old.exists(), kept.exists(), fetched.stat().st_size) == (False, True, third.size)
    await access.close()
