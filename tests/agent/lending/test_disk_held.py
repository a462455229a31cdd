"""What work writes beside what is kept: within the disk that is lent, or ended in words."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fallow.agent.caches import Caches
from fallow.agent.limits.disk import Disk
from fallow.agent.limits.writers import Writer, Writers

MB = 1 << 20
DEADLINE_S = 30.0


class Box:
    """A sandbox that holds what it says."""

    def __init__(self, held: int) -> None:
        self.bytes = held
        self.why = ""

    def end(self, why: str) -> None:
        self.why, self.bytes = why, 0

    def writer(self) -> Writer:
        return Writer(lambda: self.bytes, self.end, is_seen=False)


def blob(folder: Path, name: str, size: int, used_s: float) -> Path:
    path = folder / "blobs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(os.urandom(size))
    os.utime(path, (used_s, used_s))
    return path


async def held(disk: Disk, limit: int, until: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not until():
            disk.hold(limit)
            await asyncio.sleep(0.005)


async def test_what_is_kept_goes_before_any_work_does_and_then_who_holds_most(tmp_path: Path) -> None:
    writers, small, large = Writers(), Box(2 * MB), Box(4 * MB)
    old = blob(tmp_path, "old", 3 * MB, time.time() - 5000.0)
    new = blob(tmp_path, "new", MB, time.time())
    disk = Disk(tmp_path, Caches(tmp_path, frozenset, lambda: writers.unseen_bytes), reserve_bytes=0, writers=writers)
    writers.add(small.writer())
    writers.add(large.writer())
    await held(disk, 12 * MB, lambda: disk._taken)
    assert disk._taken >= 10 * MB
    large.bytes = 7 * MB
    await held(disk, 12 * MB, lambda: not old.exists())
    assert (small.why, large.why) == ("", "")
    large.bytes = 20 * MB
    await held(disk, 12 * MB, lambda: large.why)
    assert large.why.startswith("of the 12.6 MB of disk that this machine lends 2")
    assert large.why.endswith("were in use, and this held the most of it: 21.0 MB")
    assert small.why == ""
    assert new.exists(), "it is in use"


async def test_a_disk_that_is_nearly_full_is_its_owners(tmp_path: Path) -> None:
    writers, box = Writers(), Box(MB)
    disk = Disk(tmp_path, Caches(tmp_path, frozenset), reserve_bytes=1 << 60, writers=writers)
    writers.add(box.writer())
    await held(disk, 0, lambda: box.why)
    assert box.why.startswith("the disk of this machine has ")


async def test_room_for_a_build_counts_all_that_cannot_go(tmp_path: Path) -> None:
    writers, box = Writers(), Box(5 * MB)
    blob(tmp_path, "old", 3 * MB, time.time() - 5000.0)
    used = blob(tmp_path, "used", 2 * MB, time.time()).stat().st_blocks * 512
    disk = Disk(tmp_path, Caches(tmp_path, frozenset, lambda: writers.unseen_bytes), reserve_bytes=0, writers=writers)
    writers.add(box.writer())
    assert await disk.room(100 * MB, 20 * MB) == pytest.approx(0.75 * (20 * MB - 5 * MB - used), abs=1)
    assert await disk.room(4 * MB, 20 * MB) == 3 * MB, "what is written until it is found out comes on top"
    assert await disk.room(4 * MB, 6 * MB) == 0
    assert await disk.room(4 * MB, 0) == 3 * MB
    assert await disk.room(1 << 30, 0) == 768 * MB
