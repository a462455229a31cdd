"""A small disk under the blobs: jobs larger than it run through, new work waits for room and is refused in words."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fallow
from fallow.model.errors import PoolRefused
from fallow.sdk import room
from fallow.sdk.client import disconnect
from tests.pool import Pool, running_pool, wait_for
from tests.small_disk import small_disk_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DISK_MB = 40
MB = 1 << 20

app = fallow.App("full-blobs")


@app.function
def large(number: int) -> bytes:
    import os

    return number.to_bytes(4, "big") + os.urandom(64) * (1 << 14)


@app.function
def turned(data: bytes) -> bytes:
    return data[::-1]


@app.function
def plus(number: int) -> int:
    return number + 1


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk_at(tmp_path_factory.mktemp("disk") / "small", DISK_MB) as folder:
        yield folder


@pytest.fixture(scope="module")
def small_pool(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[Pool]:
    with running_pool(tmp_path_factory.mktemp("full") / "home", "--blobs", str(disk / "blobs")) as pool:
        yield pool


@pytest.fixture
def connected(small_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setenv("FALLOW_URL", small_pool.url)
    monkeypatch.setenv("FALLOW_HOME", str(small_pool.home))
    disconnect()
    yield small_pool
    disconnect()


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MB))
        except OSError:
            pass
    return filler


def blobs(disk: Path) -> set[Path]:
    return set(disk.glob("blobs/[0-9a-f][0-9a-f]/*"))


def only_modules(disk: Path) -> Callable[[], bool]:
    """Whether nothing else is left than what a job without data has put: this test's own modules."""
    assert list(plus.map([1])) == [2]
    modules = blobs(disk)
    return lambda: blobs(disk) <= modules


@pytest.mark.usefixtures("connected")
def test_results_that_the_disk_cannot_hold_wait_until_others_were_read(disk: Path) -> None:
    is_left = only_modules(disk)
    least = DISK_MB * MB
    count = 0
    for number, value in enumerate(large.map(range(90))):
        assert (value[:4], len(value)) == (number.to_bytes(4, "big"), 4 + MB)
        least = min(least, shutil.disk_usage(disk).free)
        if number in (0, 20, 40):
            time.sleep(0.3)  # a reader that thinks: everything is done meanwhile that has room
        count += 1
    assert count == 90
    assert least > 0, "more was leased than had room"
    wait_for("what was read to go", is_left)


@pytest.mark.usefixtures("connected")
def test_inputs_that_the_disk_cannot_hold_wait_until_others_were_answered(disk: Path) -> None:
    is_left = only_modules(disk)
    datas = [os.urandom(64) * (1 << 14) for _ in range(4)]
    for number, value in enumerate(turned.map(datas[number % 4] + bytes([number]) for number in range(90))):
        assert value == (datas[number % 4] + bytes([number]))[::-1]
    wait_for("what was answered to go", is_left)


@pytest.mark.usefixtures("connected")
def test_large_inputs_of_single_calls_go_once_they_are_answered(disk: Path) -> None:
    is_left = only_modules(disk)
    data = os.urandom(2 * MB)
    for number in range(DISK_MB):
        assert turned.remote(data + bytes([number]))[0] == number
    wait_for("them to go", is_left)


def test_while_the_disk_is_full_new_work_waits_and_small_work_goes_on(
    connected: Pool, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "SAY_AFTER_S", 0.0)
    data = os.urandom(MB)
    filler = fill(disk)
    found: list[bytes] = []
    waiting = threading.Thread(target=lambda: found.extend(turned.map([data] * 3)))
    waiting.start()
    said: list[str] = []

    def says() -> bool:
        said.append(capsys.readouterr().err)
        return "Waiting until the pool has made room" in "".join(said)

    try:
        wait_for("its words", says)
        assert list(plus.map(range(100))) == list(range(1, 101))
        assert plus.remote(1) == 2
        assert not found
    finally:
        filler.unlink()
        waiting.join(60)
    assert found == [data[::-1]] * 3

    monkeypatch.setattr(room, "ROOM_PATIENCE_S", 0.2)
    filler = fill(disk)
    try:
        for new in (lambda: list(turned.map([data])), lambda: turned.remote(data), lambda: fallow.put(data)):
            with pytest.raises(PoolRefused, match=r"the disk under \S+ is full.* 0 B are free") as caught:
                new()
            assert caught.value.kind == "store_full"
    finally:
        filler.unlink()
    wait_for("the coordinator to see room", lambda: "has room again" in log_of(connected))
    assert "the disk of the blobs is nearly full" in log_of(connected)


@pytest.mark.usefixtures("connected")
def test_what_could_never_fit_is_refused_at_once() -> None:
    with pytest.raises(PoolRefused, match="do not fit on the disk under") as caught:
        list(turned.map([bytes(DISK_MB * MB)]))
    assert caught.value.kind == "too_large"


def log_of(pool: Pool) -> str:
    return "".join(path.read_text(errors="replace") for path in (pool.home / "pool").glob("*.log"))
