"""Backup and restore: a moment of a store that is at work, and everything destroyed in between."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fallow.store.backup import (
    _LENGTH_BYTES,
    EPOCHS_AHEAD,
    MANIFEST,
    Manifest,
    TableEntry,
    backup,
    read_manifest,
    restore,
)
from fallow.store.open import open_store
from fallow.store.protocol import SchemaTooNew, Store, StoreError
from fallow.store.transfer import TableSum
from tests.engines.postgres import Postgres
from tests.store.conformance import give, job_id, put, spec
from tests.store.coordination import wait_for
from tests.store.filled import all_of, fill
from tests.store.test_postgresql import schema_for

pytestmark = pytest.mark.slow

Urls = Callable[[str], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Urls:
    """A URL for each name."""
    if request.param == "sqlite":
        return lambda name: f"sqlite:///{tmp_path / name}.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return lambda name: postgres.url(schema_for(tmp_path / name))


def without_epochs(everything: object) -> object:
    text = repr(everything)
    for number in (1, 2):
        text = text.replace(f"epoch={number + EPOCHS_AHEAD},", f"epoch={number},")
    return text


def test_everything_comes_back(urls: Urls, tmp_path: Path) -> None:
    store = open_store(urls("pool"))
    jobs = fill(store)
    before = all_of(store, jobs)
    file = tmp_path / "pool.backup"
    manifest = backup(urls("pool"), file, 12.5)
    assert (manifest.pool_id, manifest.created_unix_s) == ("pool-filled", 12.5)
    assert manifest.digests == ("a" * 64, "b" * 64)
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_manifest(file) == manifest
    store.close()
    assert restore(file, urls("again")) == manifest
    again = open_store(urls("again"))
    assert without_epochs(all_of(again, jobs)) == repr(before)
    found = again.get_job(jobs[0])
    assert found is not None
    assert found.epoch == 1 + EPOCHS_AHEAD, "above all that agents have seen"
    term = again.acquire_leadership("you")
    assert term is not None
    assert term > EPOCHS_AHEAD
    taken = again.acquire_job(jobs[0], "you")
    assert taken is not None
    again.commit([give(jobs[0], 500, 510, epoch=taken.epoch)])
    again.close()


def test_from_one_engine_to_the_other(postgres: Postgres, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'pool.db'}")
    jobs = fill(store)
    before = all_of(store, jobs)
    store.close()
    file = tmp_path / "pool.backup"
    backup(f"sqlite:///{tmp_path / 'pool.db'}", file, 1.0)
    restore(file, postgres.url(schema_for(tmp_path)))
    again = open_store(postgres.url(schema_for(tmp_path)))
    assert without_epochs(all_of(again, jobs)) == repr(before)
    again.close()


def test_a_backup_is_of_one_moment(urls: Urls, tmp_path: Path) -> None:
    """Under a writer whose commits go over several tables."""
    from fallow.store.protocol import CreateJob

    store = open_store(urls("pool"))
    store.pool_id(job_id())  # type: ignore[arg-type]
    job = job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    written = [0]
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            at = written[0]
            store.commit([give(job, at, at + 1), put(job, at, at, at + 1)])
            written[0] = at + 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            seen = written[0]
            wait_for(lambda seen=seen: written[0] > seen + 10)  # type: ignore[misc]
            before = written[0]
            file = tmp_path / f"{number}.backup"
            backup(urls("pool"), file, 1.0)
            restore(file, urls(f"again{number}"))
            again = open_store(urls(f"again{number}"))
            inputs, results = again.input_pages(job), again.result_pages(job)
            assert [page.start for page in inputs] == [page.start for page in results] == list(range(len(inputs)))
            assert len(inputs) >= before, "what was acknowledged before is in it"
            again.close()
    finally:
        done.set()
        writer.join(30)
    store.close()


def test_what_cannot_be_backed_up_is_said(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'pool.db'}"
    with pytest.raises(StoreError, match="there is no store"):
        backup(url, tmp_path / "file", 1.0)
    store = open_store(url)
    fill(store, 1)
    store.close()
    with pytest.raises(StoreError, match="cannot be written"):
        backup(url, tmp_path / "no such folder" / "file", 1.0)
    (tmp_path / "file").write_text("an older backup")
    backup(url, tmp_path / "file", 1.0)
    assert read_manifest(tmp_path / "file").pool_id == "pool-filled"
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


def test_a_store_that_is_in_use_is_not_overwritten(urls: Urls, tmp_path: Path) -> None:
    store = open_store(urls("pool"))
    jobs = fill(store, 1)
    before = all_of(store, jobs)
    store.close()
    backup(urls("pool"), tmp_path / "file", 1.0)
    with pytest.raises(StoreError, match="holds a pool already"):
        restore(tmp_path / "file", urls("pool"))
    store.open()
    assert all_of(store, jobs) == before
    store.close()


def damaged(how: str, file: Path) -> None:
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "other":
        file.write_text("this is a diary")
    elif how == "missing":
        file.unlink()
    else:
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        if how == "swapped":
            members["tables/logs"] = b""
        manifest = msgspec.json.decode(members[MANIFEST], type=Manifest)
        if how == "newer":
            manifest = msgspec.structs.replace(manifest, revision="9999")
        members[MANIFEST] = msgspec.json.encode(manifest)
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "no backup that can be read"),
        ("other", "no backup that can be read"),
        ("missing", "no backup that can be read"),
        ("swapped", "damaged: the rows of logs"),
        ("newer", "newer Fallow"),
    ],
)
def test_a_damaged_backup_restores_nothing(urls: Urls, tmp_path: Path, how: str, words: str) -> None:
    store = open_store(urls("pool"))
    fill(store, 1)
    store.close()
    file = tmp_path / "file"
    backup(urls("pool"), file, 1.0)
    damaged(how, file)
    with pytest.raises((StoreError, SchemaTooNew), match=words):
        restore(file, urls("again"))
    again = open_store(urls("again"))
    assert again.list_jobs(10, False) == []
    again.close()


def as_of_the_first_schema(file: Path) -> None:
    """Rewrite a backup as it was written before there were leaderships, and numbers of failed tasks."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = msgspec.json.decode(members[MANIFEST], type=Manifest)
    entries = []
    for entry in manifest.tables:
        if entry.name in ("leaderships", "checkpoints"):
            continue
        dropped = [at for at, column in enumerate(entry.columns) if (entry.name, column) in NEWER_COLUMNS]
        body, result = b"", TableSum()
        for row in _rows_of(members[f"tables/{entry.name}"]):
            kept = tuple(value for at, value in enumerate(row) if at not in dropped)
            result.add(kept)
            encoded = msgspec.msgpack.encode(kept)
            body += len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded
        members[f"tables/{entry.name}"] = body
        columns = tuple(column for at, column in enumerate(entry.columns) if at not in dropped)
        entries.append(TableEntry(entry.name, columns, result.rows, result.text))
    older = msgspec.structs.replace(manifest, revision="0001", tables=tuple(entries))
    members[MANIFEST] = msgspec.json.encode(older)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


NEWER_COLUMNS = {("jobs", "failed"), ("jobs", "wasted_s")}


def _rows_of(body: bytes) -> Iterator[tuple[object, ...]]:
    while body:
        length = int.from_bytes(body[:_LENGTH_BYTES], "big")
        yield msgspec.msgpack.decode(body[_LENGTH_BYTES : _LENGTH_BYTES + length], type=tuple)
        body = body[_LENGTH_BYTES + length :]


def test_an_older_backup_is_upgraded(urls: Urls, tmp_path: Path) -> None:
    store = open_store(urls("pool"))
    jobs = fill(store, 1)
    before = all_of(store, jobs)
    store.close()
    file = tmp_path / "file"
    backup(urls("pool"), file, 1.0)
    as_of_the_first_schema(file)
    restore(file, urls("again"))
    again: Store = open_store(urls("again"))
    assert without_epochs(all_of(again, jobs)) == repr(before)
    again.close()
