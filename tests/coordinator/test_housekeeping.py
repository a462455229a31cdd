"""What the coordinator's housekeeping does with garbage, over real folders, by a clock of the test's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from fallow.coordinator.blob_refs import BlobRefs
from fallow.coordinator.blob_store import FolderBlobs
from fallow.coordinator.disk_room import DiskRoom
from fallow.coordinator.housekeeping import LIVE_TIMES, Housekeeping
from fallow.core.room import GARBAGE_KEPT_S, ORPHANS_KEPT_S, Room
from fallow.model.ids import JobId
from fallow.model.job import Purpose
from fallow.wire.blob_files import BlobFiles

MB = 1 << 20
ROOMY, SHORT = Room(200 * MB, 256 * MB), Room(100 * MB, 256 * MB)


class Rows:
    """What the store names."""

    def __init__(self) -> None:
        self.live: set[str] = set()

    def live_among(self, digests: Sequence[str]) -> set[str]:
        return self.live & set(digests)


class House:
    def __init__(self, folder: Path) -> None:
        self.blobs = FolderBlobs(folder, "secret", "127.0.0.1", 0)
        self.blobs.prepare("pool")
        self.blobs.is_alone()
        self.files = BlobFiles(folder)
        self.files.prepare()
        self.rows, self.refs, self.room = Rows(), BlobRefs(), DiskRoom()
        self.leads = self.is_well = True
        self.keeping = Housekeeping(
            cast(Any, self.rows),
            self.blobs,
            self.refs,
            self.room,
            leads=lambda: self.leads,
            is_well=lambda: self.is_well,
        )

    def put(self, text: bytes, ago_s: float = 10.0) -> str:
        digest, _ = self.files.write([text], purpose=Purpose.INPUTS)
        path = self.files.path(digest)
        os.utime(path, (path.stat().st_mtime - ago_s,) * 2)
        return digest

    @property
    def there(self) -> set[str]:
        return set(self.blobs.digests())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "blobs")


async def test_garbage_goes_at_once_where_room_is_short(house: House) -> None:
    digest = house.put(b"read")
    house.refs.add(digest)
    house.refs.drop(digest, 100.0)
    house.room.seen(ROOMY)
    assert await house.keeping.sweep(100.0 + GARBAGE_KEPT_S - 1) == 0
    house.room.seen(SHORT)
    assert await house.keeping.sweep(100.0 + house.blobs.remove_least_s) == 1
    assert house.there == set()
    await house.keeping.stop()


async def test_garbage_whose_row_is_yet_to_be_deleted_is_looked_at_again(house: House) -> None:
    ours, anothers = house.put(b"ours"), house.put(b"another's")
    house.rows.live = {ours, anothers}
    for digest in (ours, anothers):
        house.refs.unwanted(digest, 0.0)
    house.room.seen(SHORT)
    now = 10.0
    assert await house.keeping.sweep(now) == 0
    house.rows.live = {anothers}
    assert await house.keeping.sweep(now + 2.0) == 1
    assert house.there == {anothers}
    for number in range(LIVE_TIMES):
        await house.keeping.sweep(now + 10.0 + 2 * number)
    assert not len(house.refs), "what others name is not looked at for ever"
    assert house.there == {anothers}
    await house.keeping.stop()


async def test_orphans_go_only_where_all_that_is_put_was_heard_of(house: House) -> None:
    orphan = house.put(b"orphan", ORPHANS_KEPT_S + 100)
    house.room.seen(ROOMY)
    task = asyncio.create_task(house.keeping.collect(ORPHANS_KEPT_S - 1))  # (it was unwell at 0)
    assert await task == 0
    assert house.there == {orphan}
    assert await house.keeping.collect(ORPHANS_KEPT_S + 1) == 1
    assert house.there == set()
    await house.keeping.stop()


def test_room_is_what_was_seen_less_what_came_since() -> None:
    room = DiskRoom(lambda: ROOMY)
    assert room.result_tasks(JobId("job-a"), 0.0, 5) is None, "results in messages take no room there"
    assert room.result_tasks(JobId("job-a"), MB, 10) == 200 - 32 - 10
    room.took(50 * MB)
    assert room.result_tasks(JobId("job-a"), MB, 10) == 150 - 32 - 10
    assert room.result_tasks(JobId("job-b"), 2 * MB, 4) == (150 - 32 - 10 - 8) // 2
    room.forget(JobId("job-a"))
    assert room.result_tasks(JobId("job-b"), 2 * MB, 4) == (150 - 32 - 8) // 2
    room.looks()
    room.took(MB)
    room.seen(Room(140 * MB, 256 * MB))
    assert room.room == Room(139 * MB, 256 * MB), "what came while it was looked at may not have been seen"
    room.seen(None)
    assert room.room is None
    assert not room.is_short
