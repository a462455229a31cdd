"""The blob folder and its garbage collection."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import blake3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fallow.coordinator.blob_garbage import delete_unreferenced
from fallow.model.errors import PoolRefused
from fallow.model.ids import Digest
from fallow.wire.blob_files import BlobFiles, hash_file, hash_segments
from fallow.wire.blobs import local_blob_client, map_file, open_blob_client
from fallow.wire.messages import PoolInfo
from tests.blobs.conftest import noise

ROOT = Path(__file__).parents[2]
DAY_S = 86_400.0


def leftovers(files: BlobFiles) -> list[Path]:
    return list((files.folder / ".incoming").iterdir())


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segments=st.lists(st.binary(max_size=300_000), max_size=5))
def test_what_is_written_comes_back(files: BlobFiles, segments: list[bytes]) -> None:
    whole = b"".join(segments)
    digest, size = files.write(segments)
    assert (digest, size) == (blake3.blake3(whole).hexdigest(), len(whole)) == hash_segments(segments)
    path = files.find(digest, size)
    assert path is not None
    assert bytes(map_file(path, size)) == whole
    assert hash_file(path) == (digest, size)
    assert leftovers(files) == []


def test_segments_of_any_shape(files: BlobFiles) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(3_000_000, dtype="int64").reshape(3, -1)  # over the size that is hashed beside writing
    parts = [b"head", array, memoryview(b""), numpy.zeros((0, 4)), bytearray(b"tail")]
    digest, size = files.write(parts)
    whole = b"head" + array.tobytes() + b"tail"
    assert (digest, size) == (blake3.blake3(whole).hexdigest(), len(whole))
    assert files.path(digest).read_bytes() == whole


def test_files_are_private_and_lie_by_digest(files: BlobFiles) -> None:
    digest, size = files.write([b"something"])
    path = files.find(digest, size)
    assert path == files.folder / digest[:2] / digest
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_only_digests_are_names(files: BlobFiles, name: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        files.path(name)


def test_a_blob_of_another_size_is_not_there(files: BlobFiles) -> None:
    digest, size = files.write([b"something"])
    assert files.find(digest, size + 1) is None
    files.path(digest).write_bytes(b"some")  # cut by a loss of power
    assert files.find(digest, size) is None
    files.write([b"something"])
    assert files.path(digest).read_bytes() == b"something", "putting it again mends it"


def test_moving_in_reads_nothing_and_copying_keeps_the_source(files: BlobFiles, tmp_path: Path) -> None:
    source = tmp_path / "result"
    source.write_bytes(b"bytes")
    inode = source.stat().st_ino
    digest, size = hash_segments([b"bytes"])
    files.move(source, digest, size)
    assert not source.exists()
    assert files.path(digest).stat().st_ino == inode
    source.write_bytes(b"bytes")
    files.move(source, digest, size)
    assert not source.exists(), "one that is there already is taken all the same"
    source.write_bytes(b"other")
    assert files.copy(source)[1] == 5
    assert source.exists()
    assert leftovers(files) == []


def test_a_file_that_is_not_what_it_is_said_to_be_is_refused(files: BlobFiles, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"bytes")
    digest, _ = hash_segments([b"others"])
    with pytest.raises(PoolRefused, match="digest"):
        files.copy(source, digest)
    with pytest.raises(PoolRefused, match="size"):
        files.move(source, digest, 6)
    assert source.exists()
    assert leftovers(files) == []
    assert files.find(digest, 6) is None


async def test_a_local_client_copies_nothing(files: BlobFiles, tmp_path: Path) -> None:
    client = local_blob_client(files)
    small = await client.put_segments([b"ab", b"cd"])
    assert (small.data, small.size) == (b"abcd", 4)
    assert await client.fetch(small) == b"abcd"
    large = await client.put_segments([noise(300_000)])
    assert large.data is None
    assert bytes(await client.fetch(large)) == noise(300_000)
    path = await client.fetch_file(large.digest, large.size, tmp_path / "cache")
    assert path == files.path(large.digest)
    assert not (tmp_path / "cache").exists()
    source = tmp_path / "file"
    source.write_bytes(noise(500_000))
    blob = await client.put_file(source)
    assert source.exists()
    assert await client.put_file(source, digest=blob.digest, size=blob.size, move=True) == blob
    assert not source.exists()
    empty = tmp_path / "empty"
    empty.touch()
    nothing = await client.put_file(empty)
    assert bytes(await client.fetch(nothing)) == b""
    with pytest.raises(PoolRefused) as caught:
        await client.fetch_file(Digest("0" * 64), 5, tmp_path)
    assert caught.value.kind == "not_found"
    await client.close()


async def test_the_store_is_local_where_its_nonce_can_be_read(files: BlobFiles, tmp_path: Path) -> None:
    nonce = "0123456789abcdef"
    (files.folder / f".fallow-{nonce}").touch()

    def info(folder: Path, nonce: str) -> PoolInfo:
        return PoolInfo("pool", "name", "0", "3.11", blob_dir=str(folder), blob_nonce=nonce)

    connection = None  # not asked for anything before a URL is needed
    for folder, shown, local in (
        (files.folder, nonce, True),
        (files.folder, "f" * 16, False),
        (files.folder, "", False),
        (files.folder, "../.fallow-0123456789abcdef", False),
        (tmp_path / "elsewhere", nonce, False),
    ):
        client = await open_blob_client(connection, info(folder, shown))  # type: ignore[arg-type]
        assert client.is_local is local, (folder, shown)
        await client.close()


@pytest.mark.slow
def test_a_full_disk_leaves_no_trace(tmp_path: Path) -> None:
    """The disk is a limit on the size of files, set for a process of its own."""
    program = """
        import resource, sys
        from pathlib import Path
        from fallow.model.errors import PoolRefused
        from fallow.wire.blob_files import BlobFiles
        files = BlobFiles(Path(sys.argv[1]))
        files.prepare()
        source = files.folder / "source"
        source.write_bytes(b"x" * 30_000_000)
        before = files.write([b"before"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        for put in (
            lambda: files.write([b"y" * 2_000_000]),
            lambda: files.write([b"z" * 20_000_000]),
            lambda: files.copy(source),
        ):
            try:
                put()
            except PoolRefused as error:
                assert error.kind == "store_full" and "full" in str(error)
            else:
                raise AssertionError("it fits")
        assert not list((files.folder / ".incoming").iterdir())
        assert files.find(*before) is not None
        assert files.find(*files.write([b"after"])) is not None
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], cwd=ROOT, timeout=90, check=False
    )
    assert done.returncode == 0


# ---------------------------------------------------------------- garbage


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blobs=st.lists(st.tuples(st.booleans(), st.integers(0, 10)), max_size=12),
    older_than_days=st.integers(1, 8),
)
def test_live_and_young_blobs_are_never_deleted(
    files: BlobFiles, blobs: list[tuple[bool, int]], older_than_days: int
) -> None:
    live: set[str] = set()
    kept: set[str] = set()
    gone: set[str] = set()
    for number, (is_live, days) in enumerate(blobs):
        digest, _ = files.write([b"%d %d" % (number, days)])
        age(files.path(digest), days * DAY_S + DAY_S / 2)
        if is_live:
            live.add(digest)
        (kept if is_live or days < older_than_days else gone).add(digest)
    nonce = files.folder / ".fallow-0123456789abcdef"
    nonce.touch()
    age(nonce, 100 * DAY_S)
    assert delete_unreferenced(files, live, older_than_days * DAY_S) == len(gone)
    assert {path.name for path in files.folder.glob("[0-9a-f][0-9a-f]/*")} == kept
    assert nonce.exists()
    for name in kept:
        files.path(name).unlink()


def test_use_makes_a_blob_young(files: BlobFiles) -> None:
    used, put, idle = (files.write([text])[0] for text in (b"used", b"put!", b"idle"))
    for digest in (used, put, idle):
        age(files.path(digest), 3 * DAY_S)
    assert files.find(used, 4) is not None
    files.write([b"put!"])
    assert delete_unreferenced(files, set(), DAY_S) == 1
    assert [files.find(digest, 4) is not None for digest in (used, put, idle)] == [True, True, False]


def test_a_blob_that_is_put_while_it_is_looked_at_survives(files: BlobFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    digest, size = files.write([b"again"])
    age(files.path(digest), 3 * DAY_S)
    rename = obstore.rename

    def put_just_before(store: object, source: str, target: str, **more: object) -> None:
        if target.startswith(".trash"):
            files.write([b"again"])
        rename(store, source, target, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(obstore, "rename", put_just_before)
    assert delete_unreferenced(files, set(), DAY_S) == 0
    assert files.find(digest, size) is not None


def test_abandoned_uploads_are_deleted(files: BlobFiles) -> None:
    old, new = (files.folder / ".incoming" / name for name in ("a" * 64 + ".00000000", "b" * 64 + ".00000000"))
    for path in (old, new):
        path.touch()
    age(old, 2 * DAY_S)
    delete_unreferenced(files, set(), DAY_S)
    assert not old.exists()
    assert new.exists()


def test_a_collection_that_was_ended_in_the_middle_loses_nothing(files: BlobFiles) -> None:
    live, young, old = (files.write([text])[0] for text in (b"live", b"yuth", b"old!"))
    trash = files.folder / ".trash"
    trash.mkdir()
    for digest in (live, young, old):
        files.path(digest).rename(trash / digest)
    age(trash / live, 3 * DAY_S)
    age(trash / old, 3 * DAY_S)
    assert delete_unreferenced(files, {live}, DAY_S) == 1
    assert [files.find(digest, 4) is not None for digest in (live, young, old)] == [True, True, False]
    assert list(trash.iterdir()) == []


def test_what_was_put_without_durability_is_synced_when_somebody_needs_it(
    files: BlobFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}") if os.path.isdir("/proc/self/fd") else "?")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    digest, size = files.write([b"something"], durable=False)
    source = tmp_path / "source"
    source.write_bytes(b"other")
    other = hash_segments([b"other"])
    files.move(source, *other, durable=False)
    assert not synced
    assert files.find(digest, size) is not None
    assert files.find(*other) is not None

    assert files.write([b"something"]) == (digest, size)
    if sys.platform == "linux":
        assert synced[-2:] == [str(files.path(digest)), str(files.path(digest).parent)]
        synced.clear()
        files.sync(other[0])
        assert synced == [str(files.path(other[0])), str(files.path(other[0]).parent)]
    files.sync("0" * 64)
