"""What nobody needs goes, and what anybody may need stays: removal under short room, by whatever history."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fallow.coordinator.blob_garbage import delete
from fallow.coordinator.blob_refs import BlobRefs
from fallow.coordinator.blob_store import OTHERS_GONE_S, FolderBlobs
from fallow.coordinator.garbage_log import GarbageLog
from fallow.model.job import Purpose
from fallow.wire.blob_files import BlobFiles, is_kept

LONG_AGO_S = 3600.0


def age(path: Path, seconds: float) -> None:
    about = path.stat()
    os.utime(path, (about.st_atime - seconds, about.st_mtime - seconds))


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    store = FolderBlobs(tmp_path / "blobs", "secret", "127.0.0.1", 0)
    store.prepare("pool")
    BlobFiles(tmp_path / "blobs").prepare()
    store.is_alone()
    return store


def files_of(blobs: FolderBlobs) -> BlobFiles:
    return BlobFiles(Path(blobs.folder))


def put(blobs: FolderBlobs, text: bytes, purpose: Purpose = Purpose.INPUTS, ago_s: float = LONG_AGO_S) -> str:
    digest, _ = files_of(blobs).write([text], purpose=purpose)
    age(files_of(blobs).path(digest), ago_s)
    return digest


def there(blobs: FolderBlobs) -> set[str]:
    return set(blobs.digests())


# ---------------------------------------------------------------- which goes


def test_what_is_needed_young_or_an_object_is_not_removed(blobs: FolderBlobs) -> None:
    garbage, needed, both = put(blobs, b"garbage"), put(blobs, b"needed"), put(blobs, b"both")
    thing, young = put(blobs, b"thing", Purpose.OBJECT), put(blobs, b"young", ago_s=0.0)
    files_of(blobs).write([b"both"])  # fallow.put of what a job had as its input
    age(files_of(blobs).path(both), LONG_AGO_S)
    asked = [garbage, needed, both, thing, young, "f" * 64]
    assert blobs.remove(asked, lambda digest: digest == needed) == (1, [young])
    assert there(blobs) == {needed, both, thing, young}


def test_orphans_are_what_jobs_have_put_and_do_not_name(blobs: FolderBlobs) -> None:
    orphan, named, counted = put(blobs, b"orphan"), put(blobs, b"named"), put(blobs, b"counted")
    thing, young = put(blobs, b"thing", Purpose.OBJECT), put(blobs, b"young", ago_s=LONG_AGO_S / 3)

    def live(digests: Sequence[str]) -> set[str]:
        return {named} & set(digests)

    assert blobs.collect_orphans(live, lambda digest: digest == counted, LONG_AGO_S / 2) == 1
    assert there(blobs) == {named, counted, thing, young}
    assert orphan not in there(blobs)


def test_blobs_from_before_objects_were_marked_count_as_objects(tmp_path: Path) -> None:
    files = BlobFiles(tmp_path)
    files.prepare()
    old, _ = files.write([b"old"], purpose=Purpose.RESULTS)
    first = FolderBlobs(tmp_path, "secret", "127.0.0.1", 0)
    first.prepare("pool")
    assert is_kept(files.path(old).stat())
    new, _ = files.write([b"new"], purpose=Purpose.RESULTS)
    FolderBlobs(tmp_path, "secret", "127.0.0.1", 0).prepare("pool")
    assert not is_kept(files.path(new).stat()), "by now they are marked"


def test_a_blob_that_is_named_or_put_at_this_very_moment_is_put_back(blobs: FolderBlobs) -> None:
    files = files_of(blobs)
    digest = put(blobs, b"again")
    size = len(b"again")
    seen: list[str] = []

    def asked(name: str, about: os.stat_result) -> bool:
        assert not files.path(digest).exists(), "it was moved aside before anybody looked"
        seen.append(name)
        if len(seen) == 1:
            files.write([b"again"], purpose=Purpose.INPUTS)
            return False
        return True

    assert not delete(files, digest, asked)
    assert files.find(digest, size) is not None
    assert delete(files, digest, asked)
    assert files.find(digest, size) is None
    assert list((files.folder / ".trash").iterdir()) == []


# ---------------------------------------------------------------- any history


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), steps=st.integers(5, 60))
def test_nothing_that_is_live_is_ever_lost(tmp_path: Path, seed: int, steps: int) -> None:
    """A few contents are put, named, given up, put as objects and removed in any order, by two coordinators that share
    a store; in the end only what is live is left."""
    chance = random.Random(seed)
    folder = tmp_path / secrets.token_hex(8)
    store = FolderBlobs(folder, "secret", "127.0.0.1", 0)
    store.prepare("pool")
    files = BlobFiles(folder)
    files.prepare()
    refs = [BlobRefs(), BlobRefs()]
    named: list[tuple[int, str]] = []
    things: set[str] = set()
    now = 0.0

    def committed(digests: Sequence[str]) -> set[str]:
        return {digest for _, digest in named} & set(digests)

    def sweep(who: int, kept_s: float) -> None:
        due = refs[who].take_due(now, kept_s)
        live = committed(due)
        _, again = store.remove([digest for digest in due if digest not in live], refs[who].needed)
        refs[who].put_back(again, now)

    for _ in range(steps):
        now += chance.uniform(0.0, 10.0)
        who = chance.randrange(2)
        match chance.randrange(6):
            case 0 | 1:  # put, then named at once
                digest, _ = files.write([b"%d" % chance.randrange(4)], purpose=Purpose.INPUTS)
                refs[who].add(digest)
                named.append((who, digest))
            case 2 if named:
                who, digest = named.pop(chance.randrange(len(named)))
                refs[who].drop(digest, now)
            case 3:
                things.add(files.write([b"%d" % chance.randrange(4)])[0])
            case 4:
                sweep(who, chance.choice((0.0, 5.0)))
            case 5:
                for digest in there(store):
                    if chance.random() < 0.5:
                        age(files.path(digest), LONG_AGO_S)
                store.collect_orphans(committed, refs[who].needed, LONG_AGO_S / 2)
        assert {digest for _, digest in named} | things <= there(store)
    for digest in there(store):
        age(files.path(digest), LONG_AGO_S)
    for who in range(2):
        sweep(who, 0.0)
    assert there(store) == {digest for _, digest in named} | things


def test_references_are_counted_and_what_is_given_up_waits() -> None:
    refs = BlobRefs()
    refs.add("a")
    refs.add("a")
    refs.drop("a", 10.0)
    assert refs.needed("a")
    assert refs.take_due(100.0, 0.0) == []
    refs.drop("a", 20.0)
    assert not refs.needed("a")
    assert refs.take_due(24.0, 5.0) == []
    assert refs.take_due(25.0, 5.0) == ["a"]
    refs.put_back(["a"], 30.0)
    refs.add("a")
    assert refs.take_due(100.0, 0.0) == [], "it is named again"
    refs.add("b", unstored=True)
    assert list(refs.unstored) == ["b"]
    refs.release("b", unstored=True)
    assert not refs.unstored
    assert not refs.needed("b")
    refs.unwanted("c", 40.0)
    assert refs.take_fresh() == ["a", "c"]
    assert refs.garbage() == ["c"]


# ---------------------------------------------------------------- after a death


def test_what_a_dead_coordinator_has_given_up_is_removed_by_another(tmp_path: Path) -> None:
    dead, next_one = (FolderBlobs(tmp_path / "blobs", "secret", "127.0.0.1", 0) for _ in range(2))
    for store in (dead, next_one):
        store.prepare("pool")
    BlobFiles(tmp_path / "blobs").prepare()
    garbage = [put(dead, b"garbage %d" % number) for number in range(3)]
    dead.note_garbage(garbage[:2], garbage[:2])
    dead.note_garbage(garbage[2:], garbage)
    assert next_one.take_left_garbage() == [], "the other may be alive"
    (log,) = (tmp_path / "blobs").glob(".garbage-*")
    age(log, OTHERS_GONE_S + 1)
    left = next_one.take_left_garbage()
    assert sorted(left) == sorted(garbage)
    assert next_one.remove(list(left), lambda digest: digest == garbage[0]) == (2, [])
    assert there(next_one) == {garbage[0]}
    (log,) = (tmp_path / "blobs").glob(".garbage-*")
    age(log, OTHERS_GONE_S + 1)
    third = FolderBlobs(tmp_path / "blobs", "secret", "127.0.0.1", 0)
    assert sorted(third.take_left_garbage()) == sorted(garbage), "who took it over may die too"


def test_the_log_of_garbage_does_not_grow_for_ever(tmp_path: Path) -> None:
    log = GarbageLog(tmp_path, "x")
    digests = [f"{number:064x}" for number in range(3000)]
    for _ in range(10):
        log.note(digests, digests[-5:])
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 9000 * 65
    with path.open("a") as file:
        file.write("cut in the mid")  # the process died while it wrote
    age(path, 100.0)
    ((found, names),) = GarbageLog(tmp_path, "y").left_by_others(path.stat().st_mtime + 1.0)
    assert found == path
    assert set(digests[-5:]) <= set(names) <= set(digests)
    log.note([], [])
    assert list(tmp_path.iterdir()) == []
