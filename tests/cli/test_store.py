"""`fallow store`: backup, the loss of everything, restore; a move; words."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from fallow.cli.main import main
from fallow.cli.store import own_blobs, own_store, without_key
from fallow.model.ids import JobId, PoolId
from fallow.model.job import Blob
from fallow.store.open import open_store
from fallow.store.protocol import CreateJob, StoreMoved
from fallow.wire.blob_files import BlobFiles
from tests.store.conformance import give, job_id, spec

JOB = job_id()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("FALLOW_HOME", str(folder))
    return folder


def fallow(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    code = ended.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


def fill(home: Path) -> dict[str, bytes]:
    """A pool's home, with a job, its blobs, and one that is only known inside of inputs. Returns blobs by digest."""
    files = BlobFiles(Path(own_blobs()))
    files.folder.mkdir(parents=True)
    files.prepare()
    bodies = {}
    for body in (b"function" * 100, b"an input page" * 1000, b"put by a script" * 500):
        digest, _ = files.write([body])
        bodies[digest] = body
    function, page, _ = (Blob(files_digest, len(body)) for files_digest, body in bodies.items())  # type: ignore[arg-type]
    store = open_store(own_store())
    store.pool_id(PoolId("pool-home"))
    store.commit([CreateJob(spec(JOB, function=function), "me", 1.0), give(JOB, 0, 5, page=page)])
    store.close()
    return bodies


def check(bodies: dict[str, bytes]) -> None:
    store = open_store(own_store())
    assert store.pool_id(PoolId("another")) == "pool-home"
    assert len(store.input_pages(JobId(JOB))) == 1
    assert store.live_digests() <= set(bodies)
    store.close()
    for digest, body in bodies.items():
        assert (Path(own_blobs()) / digest[:2] / digest).read_bytes() == body


def test_everything_is_destroyed_and_comes_back(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = fill(home)
    safe = tmp_path / "safe"
    safe.mkdir()
    file = str(safe / "pool.backup")
    assert fallow("store", "backup", "--to", file) == 0
    assert "3 blobs copied (0 were there)" in capsys.readouterr().out
    assert fallow("store", "backup", "--to", file) == 0
    assert "blobs copied" not in capsys.readouterr().out, "only new ones are copied again"
    shutil.rmtree(home)
    assert fallow("store", "restore", "--from", file) == 0
    assert "3 blobs put into" in capsys.readouterr().out
    check(bodies)


def test_blobs_that_are_gone_or_damaged_are_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = fill(home)
    file = tmp_path / "pool.backup"
    with contextlib.closing(open_store(own_store())) as store:
        live = sorted(store.live_digests())[0]
    lost = Path(own_blobs()) / live[:2] / live
    lost.unlink()
    assert fallow("store", "backup", "--to", str(file)) == 1
    assert "blobs that jobs need are not in the blob store" in capsys.readouterr().err
    lost.write_bytes(b"?" * len(bodies[live]))
    assert fallow("store", "backup", "--to", str(file)) == 1
    assert "damaged" in capsys.readouterr().err
    lost.write_bytes(bodies[live])
    assert fallow("store", "backup", "--to", str(file)) == 0
    shutil.rmtree(home)
    copy = tmp_path / "pool.backup.blobs" / live[:2] / live
    copy.rename(tmp_path / "aside")
    assert fallow("store", "restore", "--from", str(file)) == 1
    assert "lacks 1 of the blobs" in capsys.readouterr().err
    (tmp_path / "aside").rename(copy)
    copy.write_bytes(b"!" * len(bodies[live]))
    assert fallow("store", "restore", "--from", str(file)) == 1
    assert "damaged" in capsys.readouterr().err
    copy.write_bytes(bodies[live])
    assert fallow("store", "restore", "--from", str(file)) == 0
    check(bodies)
    assert fallow("store", "restore", "--from", str(file)) == 1
    assert "holds a pool already" in capsys.readouterr().err


def test_without_blobs(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(home)
    shutil.rmtree(own_blobs())
    file = str(tmp_path / "pool.backup")
    assert fallow("store", "backup", "--to", file) == 1
    assert "--no-blobs" in capsys.readouterr().err
    assert fallow("store", "backup", "--to", file, "--no-blobs") == 0
    shutil.rmtree(home)
    assert fallow("store", "restore", "--from", file, "--no-blobs") == 0


def test_a_move(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(home)
    target = f"sqlite:///{tmp_path / 'new.db'}"
    assert fallow("store", "migrate", "--to", target) == 0
    assert "jobs: 1 rows, checked" in capsys.readouterr().out
    with pytest.raises(StoreMoved, match=r"new\.db"):
        open_store(own_store())
    assert fallow("store", "backup", "--to", str(tmp_path / "file"), "--no-blobs") == 1
    assert "was moved to" in capsys.readouterr().err


def test_upgrade(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(home)
    assert fallow("store", "upgrade") == 0
    assert "up to date" in capsys.readouterr().out
    assert fallow("store", "upgrade", "--store", "mysql://me:secret@host/db") == 1
    said = capsys.readouterr().err
    assert "not a store that Fallow knows" in said
    assert "secret" not in said


def test_a_move_takes_the_blobs_along(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = fill(home)
    new_store, new_blobs = f"sqlite:///{tmp_path}/new.sqlite", tmp_path / "new-blobs"
    with contextlib.closing(open_store(own_store())) as store:
        live = sorted(store.live_digests())[0]
    kept = Path(own_blobs()) / live[:2] / live
    kept.rename(tmp_path / "lost")
    assert fallow("store", "migrate", "--to", new_store, "--blobs-to", str(new_blobs)) == 1
    assert "lacks 1 of the blobs" in capsys.readouterr().err
    open_store(own_store()).close()  # nothing has moved
    (tmp_path / "lost").rename(kept)
    assert fallow("store", "migrate", "--to", new_store, "--blobs-to", own_blobs()) == 1
    assert "to the same place" in capsys.readouterr().err
    assert fallow("store", "migrate", "--to", new_store, "--blobs-to", str(new_blobs)) == 0
    assert f"Its blobs are in {new_blobs}" in capsys.readouterr().out
    for digest, body in bodies.items():
        assert (new_blobs / digest[:2] / digest).read_bytes() == body
    with pytest.raises(StoreMoved):
        open_store(own_store())


def test_a_key_is_not_shown() -> None:
    assert without_key("s3://key:secret@bucket/prefix?endpoint=http://x") == "s3://bucket/prefix?endpoint=http://x"
    assert without_key("/srv/a@b") == "/srv/a@b"
