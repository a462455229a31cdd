"""Blobs in S3: a real SeaweedFS, presigned URLs, words for what is wrong, and garbage that is never a live blob."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fallow.coordinator.blob_copies import Copied, copy_in, copy_out
from fallow.coordinator.blob_store import open_blob_store
from fallow.coordinator.s3_blobs import POOL_ID, TRASH, TRASH_KEPT_S, S3Blobs
from fallow.model.errors import PoolRefused, PoolUnreachable, SettingError
from fallow.model.ids import Digest
from fallow.wire.blob_files import hash_segments
from fallow.wire.blob_http import HttpBlobs
from fallow.wire.blobs import BlobClient
from tests.blobs.conftest import noise
from tests.engines.postgres import free_port
from tests.engines.seaweed import READER, WRITER, Seaweed

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


class Clock:
    """Of the collection: real time, and what a test adds."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def blobs(seaweed: Seaweed, tmp_path: Path, clock: Clock) -> S3Blobs:
    """In a place of its own."""
    made = S3Blobs(seaweed.url(tmp_path.name), clock)
    made.prepare("pool-a")
    return made


def test_coordinators_that_start_together_are_not_in_each_others_way(seaweed: Seaweed, tmp_path: Path) -> None:
    def prepare(_: int) -> None:
        S3Blobs(seaweed.url(tmp_path.name)).prepare("pool-a")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(prepare, range(24)))


@pytest.fixture
async def client(blobs: S3Blobs) -> AsyncIterator[BlobClient]:
    async def sign(method: str, digest: str, size: int) -> str:
        return str(blobs.sign(method, digest, size))

    made = BlobClient(None, HttpBlobs(sign, backoff_s=0.01, attempts=3))
    yield made
    await made.close()


def put(blobs: S3Blobs, data: bytes) -> Digest:
    digest, _ = hash_segments([data])
    obstore.put(blobs._store, f"{digest[:2]}/{digest}", data)
    return digest


def names(blobs: S3Blobs) -> set[str]:
    return {entry["path"] for batch in obstore.list(blobs._store) for entry in batch if entry["path"] != POOL_ID}


# ---------------------------------------------------------------- transfers


async def test_there_and_back(client: BlobClient, blobs: S3Blobs, tmp_path: Path) -> None:
    data = noise(3_000_000)
    blob = await client.put_segments([data[:5], memoryview(data)[5:]])
    assert blob.data is None
    assert names(blobs) == {f"{blob.digest[:2]}/{blob.digest}"}
    path = await client.fetch_file(blob.digest, blob.size, tmp_path / "cache")
    assert path.read_bytes() == data
    assert bytes(await client.fetch(blob)) == data
    source = tmp_path / "file"
    source.write_bytes(noise(200_000, 2))
    stored = await client.put_file(source, move=True)
    assert not source.exists()
    assert bytes(await client.fetch(stored)) == noise(200_000, 2)


async def test_what_is_there_and_young_is_not_sent_again(
    client: BlobClient, blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    whole = HttpBlobs._put_whole

    async def counted(self: HttpBlobs, url: object, digest: Digest, size: int, body: object) -> None:
        sent.append(size)
        await whole(self, url, digest, size, body)  # type: ignore[arg-type]

    monkeypatch.setattr(HttpBlobs, "_put_whole", counted)
    data = noise(600_000)
    await client.put_segments([data])
    await client.put_segments([data])
    assert len(sent) == 1
    client._http._young.clear()  # another client does not know that it is young, and asks
    await client.put_segments([data])
    assert len(sent) == 1
    assert client._http._young, "from now on it need not ask"
    client._http._young.clear()
    monkeypatch.setattr("fallow.wire.blob_http.S3_SKIP_S", -1.0)
    await client.put_segments([data])
    assert len(sent) == 2, "an old one is made young by putting it again"


async def test_a_blob_that_is_gone_is_said_to_be(client: BlobClient, tmp_path: Path) -> None:
    digest, size = hash_segments([b"nobody put this"])
    with pytest.raises(PoolRefused, match="no longer has the blob") as caught:
        await client.fetch_file(digest, size, tmp_path)
    assert caught.value.kind == "not_found"


async def test_bytes_that_are_not_a_blobs_own_are_refused(client: BlobClient, blobs: S3Blobs, tmp_path: Path) -> None:
    digest, size = hash_segments([b"right"])
    obstore.put(blobs._store, f"{digest[:2]}/{digest}", b"wrong")
    with pytest.raises(PoolRefused, match="damaged"):
        await client.fetch_file(digest, size, tmp_path)


async def test_urls_are_for_one_method_and_blob(blobs: S3Blobs) -> None:
    digest = put(blobs, b"secret")
    url = str(blobs.sign("GET", digest, 6))
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"secret"
    other, _ = hash_segments([b"other"])
    forged = url.replace(digest, other).replace(f"/{digest[:2]}/", f"/{other[:2]}/")
    for wrong in (
        urllib.request.Request(url, method="PUT", data=b"mine"),
        urllib.request.Request(forged),
        urllib.request.Request(url.partition("?")[0]),
    ):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(wrong)
    for method, name in (("DELETE", digest), ("GET", "../.pool-id")):
        with pytest.raises(ValueError, match="no URL"):
            blobs.sign(method, name, 1)


async def test_a_service_that_does_not_answer(tmp_path: Path) -> None:
    blobs = S3Blobs(f"s3://a:b@pool?endpoint=http://127.0.0.1:{free_port()}")

    async def sign(method: str, digest: str, size: int) -> str:
        return str(blobs.sign(method, digest, size))

    client = BlobClient(None, HttpBlobs(sign, backoff_s=0.01, attempts=3))
    with pytest.raises(PoolUnreachable, match="3 times in a row"):
        await client.put_segments([noise(600_000)])
    await client.close()


# ---------------------------------------------------------------- at a coordinator's start


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        (lambda s: s.url(bucket="missing"), SettingError, "no such bucket: create it first"),
        (lambda s: s.url("x", READER), SettingError, "may not do that.*tried to write"),
        (lambda s: s.url("x", (WRITER[0], "guessed")), SettingError, "secret key is wrong"),
        (lambda s: s.url("x", ("nobody", "guessed")), SettingError, "access key is not known"),
        (lambda s: f"s3://pool?endpoint={s.endpoint}", SettingError, "no key was found"),
        (lambda s: f"s3://a:guessed@pool?endpoint=http://127.0.0.1:{free_port()}", PoolUnreachable, "no S3 service"),
    ],
)
def test_what_is_wrong_is_said_in_words(
    seaweed: Seaweed,
    url: Callable[[Seaweed], str],
    kind: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    blobs = open_blob_store(url(seaweed), "")
    with pytest.raises(kind, match=words) as caught:
        blobs.prepare("pool-a")
    assert "guessed" not in str(caught.value)
    assert "secret's" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://", "s3://bucket?colour=blue", "s3://bucket?endpoint=nowhere", "gs://bucket", "https://host/bucket"]
)
def test_urls_that_cannot_be_read(url: str) -> None:
    with pytest.raises(SettingError, match="s3://BUCKET/PREFIX"):
        open_blob_store(url, "")


def test_a_place_is_one_pools(seaweed: Seaweed, blobs: S3Blobs, tmp_path: Path) -> None:
    blobs.prepare("pool-a")
    with pytest.raises(SettingError, match=r"belong to another pool \(pool-a\)"):
        S3Blobs(seaweed.url(tmp_path.name)).prepare("pool-b")
    S3Blobs(seaweed.url(tmp_path.name + "-b")).prepare("pool-b")
    assert names(blobs) == set(), "nothing is left of the probing"


# ---------------------------------------------------------------- copies


def test_a_copy_and_back(seaweed: Seaweed, blobs: S3Blobs, tmp_path: Path) -> None:
    bodies = [noise(700_000, 1), b"small", b""]
    digests = [put(blobs, body) for body in bodies]
    folder = tmp_path / "copy"
    assert copy_out(blobs, folder, digests) == Copied(3, 0)
    fourth = put(blobs, b"fourth")
    assert copy_out(blobs, folder, [*digests, "e" * 64]) == Copied(1, 3, ("e" * 64,))
    other = S3Blobs(seaweed.url(tmp_path.name + "-other"))
    other.write(digests[1], folder / digests[1][:2] / digests[1])
    assert copy_in(folder, other, digests) == Copied(3, 1)
    for digest, body in zip([*digests, fourth], [*bodies, b"fourth"], strict=True):
        assert b"".join(other.read(digest)) == body
    with pytest.raises(SettingError, match="lacks 1 of the blobs"):
        copy_in(folder, other, ["e" * 64])
    with pytest.raises(SettingError, match="no such bucket"):
        copy_out(S3Blobs(seaweed.url(bucket="missing")), folder, [])


# ---------------------------------------------------------------- garbage


def live(*digests: str) -> Callable[[Sequence[str]], Collection[str]]:
    return lambda asked: set(asked) & set(digests)


def test_what_no_job_needs_is_deleted_an_hour_later(blobs: S3Blobs, clock: Clock) -> None:
    needed, garbage = put(blobs, b"needed"), put(blobs, b"garbage")
    assert blobs.collect(live(needed), 0.0) == 0, "both are young"
    clock.ahead_s = 7200.0
    young = put(blobs, b"young")
    clock.ahead_s = blobs.remove_after_s + 60
    later = {young, needed}
    assert blobs.collect(live(*later), 0.0) == 1
    assert f"{TRASH}/{garbage}" in names(blobs)
    assert garbage not in {path.rpartition("/")[2] for path in names(blobs) if not path.startswith(TRASH)}
    clock.ahead_s += TRASH_KEPT_S + 60
    assert blobs.collect(live(*later), 0.0) == 0
    assert names(blobs) == {f"{digest[:2]}/{digest}" for digest in later}


def test_what_is_needed_after_all_comes_back(blobs: S3Blobs, clock: Clock) -> None:
    digest = put(blobs, b"wanted again")
    clock.ahead_s = blobs.remove_after_s + 60
    assert blobs.collect(live(), 0.0) == 1
    assert blobs.size_of(digest) is None
    clock.ahead_s += 10 * TRASH_KEPT_S
    blobs.collect(live(digest), 0.0)
    assert blobs.size_of(digest) == 12
    assert names(blobs) == {f"{digest[:2]}/{digest}"}


def test_a_blob_that_is_put_while_it_is_deleted_survives(
    blobs: S3Blobs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(blobs, b"just now")
    clock.ahead_s = blobs.remove_after_s + 60
    copy = obstore.copy
    old = blobs._modified(digest)

    def put_meanwhile(store: object, source: str, target: str) -> None:
        copy(store, source, target)  # type: ignore[arg-type]
        monkeypatch.setattr(blobs, "_modified", lambda digest: old + clock.ahead_s)

    monkeypatch.setattr(obstore, "copy", put_meanwhile)
    assert blobs.collect(live(), 0.0) == 0
    assert blobs.size_of(digest) == 8


def test_remove_leaves_what_is_young_or_needed(blobs: S3Blobs, clock: Clock) -> None:
    first, second, third = (put(blobs, text) for text in (b"first", b"second", b"third"))
    assert blobs.remove([first, second], lambda digest: False) == (0, ())
    clock.ahead_s = blobs.remove_after_s + 60
    assert blobs.remove([first, second, third, "f" * 64], lambda digest: digest == second) == (2, ())
    assert blobs.size_of(first) is None
    assert blobs.size_of(second) == 6


def test_ages_are_by_the_services_clock(seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = S3Blobs(seaweed.url(tmp_path.name))
    blobs.prepare("pool-a")
    digest = put(blobs, b"young")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    assert blobs.collect(live(), 0.0) == 0
    monkeypatch.undo()
    assert blobs.size_of(digest) == 5


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "name", "drop", "wait", "collect", "remove"]), st.integers(0, 3)),
        max_size=14,
    )
)
def test_a_live_or_young_blob_is_never_lost(blobs: S3Blobs, clock: Clock, steps: list[tuple[str, int]]) -> None:
    """Blobs are put, named by jobs at once, dropped by them; time passes; whatever is collected in between, a blob that
    is named can be had (after a collection at the latest, where it was aside). The collection's clock is so far ahead
    that it takes new blobs for old ones: as if each was put at the very moment in which it is deleted."""
    bodies = [b"blob %d" % number for number in range(4)]
    digests = [hash_segments([body])[0] for body in bodies]
    named: set[str] = set()
    put_at: dict[str, float] = {}
    for action, which in steps:
        digest = digests[which]
        if action == "put":
            put(blobs, bodies[which])
            put_at[digest] = clock.ahead_s
        elif action == "name" and put_at.get(digest) == clock.ahead_s:
            named.add(digest)
        elif action == "drop":
            named.discard(digest)
        elif action == "wait":
            clock.ahead_s += (60.0, 600.0, 2000.0, 8000.0)[which]
        elif action == "collect":
            blobs.collect(live(*named), 0.0)
        elif action == "remove":
            blobs.remove([digest], lambda asked: asked in named)
        for each in named:
            if blobs.size_of(each) is None:
                blobs.collect(live(*named), 0.0)
            assert blobs.size_of(each) is not None, f"{action} lost a live blob"
    for path in names(blobs):
        obstore.delete(blobs._store, path)
    clock.ahead_s = 0.0


_CHILD = """
    import os, signal, sys
    import obstore
    from fallow.coordinator import s3_blobs
    import time

    blobs = s3_blobs.S3Blobs(sys.argv[1], lambda: time.time() + 5000)
    calls = [0]

    def counting(function):
        def call(*arguments, **more):
            calls[0] += 1
            if calls[0] == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)
        return call

    for name in ("copy", "delete", "head"):
        setattr(obstore, name, counting(getattr(obstore, name)))
    blobs.collect(lambda asked: set(sys.argv[3:]) & set(asked), 0.0)
"""


@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_a_collection_that_is_killed_loses_nothing(
    seaweed: Seaweed, blobs: S3Blobs, clock: Clock, tmp_path: Path, step: int
) -> None:
    needed, garbage = put(blobs, b"needed"), put(blobs, b"garbage")
    command = [sys.executable, "-c", textwrap.dedent(_CHILD), seaweed.url(tmp_path.name), str(step), needed]
    assert subprocess.run(command, cwd=ROOT, timeout=90).returncode in (-signal.SIGKILL, 0)
    assert blobs.size_of(needed) == 6
    clock.ahead_s = blobs.remove_after_s + 60
    blobs.collect(live(needed), 0.0)
    clock.ahead_s += TRASH_KEPT_S + 60
    blobs.collect(live(needed), 0.0)
    assert names(blobs) == {f"{needed[:2]}/{needed}"}
    assert blobs.size_of(garbage) is None


def test_coordinators_that_start_together_do_not_delete_what_the_others_try_the_place_with(
    seaweed: Seaweed, tmp_path: Path
) -> None:
    url = seaweed.url(tmp_path.name)
    with ThreadPoolExecutor(6) as threads:
        for _ in range(3):
            assert list(threads.map(lambda _: S3Blobs(url).prepare("pool-a"), range(6))) == [None] * 6
