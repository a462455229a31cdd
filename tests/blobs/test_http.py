"""Transfers between a client on another machine and the blob server: whole, cut, forged, late, wrong, full."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fallow.coordinator import blob_server
from fallow.coordinator.blob_server import BlobServer
from fallow.core.room import Room
from fallow.model.errors import PoolRefused, PoolUnreachable
from fallow.model.ids import Digest
from fallow.model.job import Purpose
from fallow.wire import blob_files
from fallow.wire.blob_http import (
    ATTEMPTS,
    PATIENT_ATTEMPTS,
    UPLOAD_ID,
    UPLOAD_OFFSET,
    HttpBlobs,
    pool_signer,
    reachable,
)
from fallow.wire.blobs import hash_segments
from fallow.wire.messages import Refused, SignBlobs, SignedBlobs
from tests.blobs.conftest import Served, noise

ROOT = Path(__file__).parents[2]
UPLOAD = {UPLOAD_ID: "0123456789abcdef"}


def incoming(served: Served) -> list[Path]:
    return list((served.files.folder / ".incoming").iterdir())


async def send(
    method: str, url: str, body: bytes = b"", first: int = 0, size: int | None = None, upload: str = UPLOAD[UPLOAD_ID]
) -> tuple[int, str, str]:
    """One request; a PUT says that the body begins at `first`. Returns status, words, Upload-Offset."""
    headers = {UPLOAD_ID: upload}
    if method == "PUT" and size is not None:
        headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
    async with aiohttp.ClientSession() as session:
        async with session.request(method, url, data=body or None, headers=headers) as answer:
            return answer.status, await answer.text(), answer.headers.get(UPLOAD_OFFSET, "")


# ---------------------------------------------------------------- round trips


async def test_there_and_back(served: Served, tmp_path: Path) -> None:
    client = served.client()
    assert not client.is_local
    data = noise(3_000_000)
    blob = await client.put_segments([data[:5], memoryview(data)[5:2_000_000], b"", data[2_000_000:]])
    assert served.files.path(blob.digest).read_bytes() == data
    path = await client.fetch_file(blob.digest, blob.size, tmp_path / "cache")
    assert path.read_bytes() == data
    assert bytes(await client.fetch(blob)) == data
    signed = served.signed
    assert await client.fetch_file(blob.digest, blob.size, tmp_path / "cache") == path
    assert served.signed == signed, "what is cached is not asked for"
    assert incoming(served) == []
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [blob.digest]


@pytest.mark.parametrize("size", [0, 1, 300_000])
async def test_files_of_any_size(served: Served, tmp_path: Path, size: int) -> None:
    client = served.client()
    source = tmp_path / "file"
    source.write_bytes(noise(size))
    blob = await client.put_file(source)
    assert (blob.data, blob.size) == (None, size)
    assert source.exists()
    fetched = await client.fetch_file(blob.digest, size, tmp_path / "cache")
    assert fetched.read_bytes() == noise(size)
    assert await client.put_file(source, digest=blob.digest, size=size, move=True) == blob
    assert not source.exists()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 1_200_000), min_size=1, max_size=4), seed=st.integers(0, 1000))
async def test_any_segments(served: Served, sizes: list[int], seed: int) -> None:
    client = served.client()
    segments = [noise(size, seed + number) for number, size in enumerate(sizes)]
    blob = await client.put_segments(segments)
    assert bytes(await client.fetch(blob)) == b"".join(segments)


async def test_calls_for_one_blob_share_a_transfer(served: Served, tmp_path: Path) -> None:
    blob = await served.local().put_segments([noise(2_000_000)])
    client = served.client()
    calls = [client.fetch_file(blob.digest, blob.size, tmp_path / "cache") for _ in range(10)]
    assert len(set(await asyncio.gather(*calls))) == 1
    assert served.signed == 1


async def test_what_is_there_is_not_sent_again(served: Served) -> None:
    data = noise(2_000_000)
    await served.local().put_segments([data])
    proxy = await served.with_proxy(100_000)  # more would be cut, and made anew
    await served.client().put_segments([data])
    assert proxy.made == 1


# ---------------------------------------------------------------- cut connections


@pytest.mark.parametrize("cuts", [(500_000,), (0, 300, 2_000_000, 900_000, 5_000_000)])
async def test_a_fetch_goes_on_where_it_was_cut(served: Served, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    data = noise(8_000_000)
    blob = await served.local().put_segments([data])
    proxy = await served.with_proxy(*cuts)
    path = await served.client().fetch_file(blob.digest, blob.size, tmp_path / "cache")
    assert path.read_bytes() == data
    assert proxy.made == len(cuts) + 1


@pytest.mark.parametrize("cuts", [(500_000,), (0, 3_000_000, 300, 700_000, 4_000_000)])
async def test_a_put_goes_on_where_it_was_cut(served: Served, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    source = tmp_path / "file"
    source.write_bytes(noise(8_000_000))
    sent = 0
    receive = BlobServer._receive

    async def counting(server: BlobServer, request: Any, part: Path, offset: int, size: int) -> int:
        nonlocal sent
        try:
            return await receive(server, request, part, offset, size)
        finally:
            sent += part.stat().st_size - offset

    await served.with_proxy(*cuts)
    with mock.patch.object(BlobServer, "_receive", counting):
        blob = await served.client().put_file(source)
    assert served.files.path(blob.digest).read_bytes() == noise(8_000_000)
    assert sent == 8_000_000, "no byte was written twice"
    assert incoming(served) == []


async def test_a_server_that_never_answers_is_given_up(served: Served, tmp_path: Path) -> None:
    await served.with_proxy(*[0] * 100)
    with pytest.raises(PoolUnreachable, match="3 times"):
        await served.client(attempts=3).fetch_file(Digest("a" * 64), 500_000, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_store_that_is_away_is_spoken_of_once_and_waited_for(served: Served, tmp_path: Path) -> None:
    blob = await served.local().put_segments([noise(500_000)])
    await served.with_proxy(*[0] * 2 * ATTEMPTS)
    said: list[str] = []
    http = HttpBlobs(served.sign, backoff_s=1e-6, attempts=PATIENT_ATTEMPTS, say=said.append)
    try:
        await http.get(blob.digest, blob.size, tmp_path / "got")
    finally:
        await http.close()
    assert (tmp_path / "got").read_bytes() == noise(500_000)
    assert len(said) == 1
    assert f"failed {ATTEMPTS} times in a row" in said[0]


async def test_cancelling_leaves_nothing(served: Served, tmp_path: Path) -> None:
    blob = await served.local().put_segments([noise(3_000_000)])
    await served.with_proxy(*[0] * 1000)
    client = served.client(attempts=10_000)
    task = asyncio.create_task(client.fetch_file(blob.digest, blob.size, tmp_path / "cache"))
    while not served.signed:
        await asyncio.sleep(0.001)
    task.cancel()
    await client.close()
    await asyncio.gather(task, return_exceptions=True)
    assert list((tmp_path / "cache").iterdir()) == []


# ---------------------------------------------------------------- who may do what


async def test_a_url_is_good_for_one_thing(served: Served) -> None:
    blob = await served.local().put_segments([noise(300_000)])
    url = await served.sign("GET", blob.digest, blob.size)
    assert (await send("HEAD", url))[0] == 200
    other = await served.local().put_segments([noise(300_000, 2)])
    for wrong in (
        url.replace("signature=", "signature=0"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("method=GET", "method=PUT"),
        url.replace(blob.digest, other.digest),
        url.replace(f"size={blob.size}", f"size={blob.size - 1}"),
        url.replace("expires=", "expires=9"),
        url.split("&signature=")[0],
        url.replace("signature=", "signature=%C3%A4"),
    ):
        status, words, _ = await send("GET", wrong)
        assert (status, "signature" in words) == (403, True), wrong
    assert (await send("PUT", url, b"x"))[0] == 405
    assert (await send("DELETE", url))[0] == 405
    for odd in ("", "/blobs/", "/blobs/abc", "/blobs/..%2F..%2Fetc", f"/blobs/{blob.digest}", "/.incoming/x"):
        assert (await send("GET", served.server.base_url + odd))[0] in (400, 404), odd


async def test_another_secret_opens_nothing(served: Served, tmp_path: Path) -> None:
    blob = await served.local().put_segments([noise(300_000)])
    stranger = BlobServer(tmp_path / "other", "another secret")
    stranger.base_url = served.server.base_url
    assert (await send("GET", stranger.sign("GET", blob.digest, blob.size, time.time())))[0] == 403


async def test_an_expired_url_is_refused_and_the_client_gets_another(served: Served, tmp_path: Path) -> None:
    blob = await served.local().put_segments([noise(300_000)])
    url = await served.sign("GET", blob.digest, blob.size)
    served.now = blob_server.URL_LIFETIME_S + 1
    status, words, _ = await send("GET", url)
    assert (status, words) == (403, "the URL has expired")
    sign, given = served.sign, [url]

    async def late_first(method: str, digest: str, size: int) -> str:
        return given.pop() if given else await sign(method, digest, size)

    client = served.client()
    client._http._sign = late_first
    assert (await client.fetch_file(blob.digest, blob.size, tmp_path / "cache")).exists()


def test_only_sensible_urls_are_signed(tmp_path: Path) -> None:
    server = BlobServer(tmp_path, "secret")
    for method, digest, size in (("POST", "a" * 64, 1), ("GET", "../x", 1), ("PUT", "a" * 64, -1)):
        with pytest.raises(ValueError, match="no URL"):
            server.sign(method, digest, size, 0.0)


async def test_a_port_that_is_taken(served: Served, tmp_path: Path) -> None:
    port = int(served.server.base_url.rsplit(":", 1)[1])
    second = BlobServer(tmp_path / "second", "secret")
    with pytest.raises(OSError, match="address already in use"):
        await second.start("127.0.0.1", port)


# ---------------------------------------------------------------- wrong bytes


async def test_wrong_bytes_never_become_a_blob(served: Served) -> None:
    digest, size = hash_segments([noise(400_000)])
    url = await served.sign("PUT", digest, size)
    status, words, _ = await send("PUT", url, noise(400_000, 2), size=size)
    assert (status, digest[:16] in words) == (422, True)
    assert served.files.find(digest, size) is None
    assert incoming(served) == []


async def test_uploads_must_follow_on(served: Served) -> None:
    data = noise(400_000)
    digest, size = hash_segments([data])
    url = await served.sign("PUT", digest, size)
    assert await send("HEAD", url) == (200, "", "0")
    assert (await send("PUT", url, data[:1000], size=size))[::2] == (409, "1000"), "too little came"
    assert await send("HEAD", url) == (200, "", "1000")
    assert (await send("PUT", url, data, size=size))[::2] == (409, "1000"), "not where it was left"
    assert (await send("PUT", url, data[1000:], 1000, size + 1))[0] == 400
    assert (await send("PUT", url, data[1000:], 1000, size, "../../x"))[0] == 400
    assert (await send("HEAD", url, upload="00000000"))[2] == "0", "uploads of two clients do not meet"
    assert (await send("PUT", url, data[1000:], 1000, size))[0] == 201
    assert (await send("PUT", url, data, size=size, upload="00000000"))[0] == 200
    assert served.files.find(digest, size) is not None
    assert incoming(served) == []


async def test_more_bytes_than_said_are_refused(served: Served) -> None:
    data = noise(400_000)
    digest, size = hash_segments([data])
    url = await served.sign("PUT", digest, size)
    assert (await send("PUT", url, data + b"x", size=size))[0] == 413
    assert served.files.find(digest, size) is None
    assert incoming(served) == []


async def test_an_upload_that_ended_after_its_last_byte_is_finished(served: Served) -> None:
    data = noise(400_000)
    digest, size = hash_segments([data])
    (served.files.folder / ".incoming" / f"{digest}.{UPLOAD[UPLOAD_ID]}").write_bytes(data)
    url = await served.sign("PUT", digest, size)
    assert (await send("HEAD", url))[0] in (200, 201)
    assert served.files.find(digest, size) is not None


async def test_damage_in_the_store_is_seen(served: Served, tmp_path: Path) -> None:
    blob = await served.local().put_segments([noise(300_000)])
    served.files.path(blob.digest).write_bytes(noise(300_000, 2))
    with pytest.raises(PoolRefused, match="damaged"):
        await served.client().fetch_file(blob.digest, blob.size, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_missing_blob_is_said_to_be(served: Served, tmp_path: Path) -> None:
    with pytest.raises(PoolRefused, match="no blob") as caught:
        await served.client().fetch_file(Digest("a" * 64), 300_000, tmp_path / "cache")
    assert caught.value.kind == "not_found"


async def test_a_file_that_shrinks_while_it_is_sent(served: Served, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(noise(3_000_000))
    digest, size = hash_segments([noise(3_000_000)])
    os.truncate(source, 1_500_000)
    with pytest.raises(PoolRefused, match="shorter"):
        await served.client(attempts=3).put_file(source, digest=digest, size=size)


# ---------------------------------------------------------------- full disks


async def test_no_room_is_seen_before_anything_is_sent(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_files, "room_under", lambda folder: Room(64_000_000, 1 << 30))
    client = served.client()
    with pytest.raises(PoolRefused, match="full") as caught:
        await client.put_segments([noise(300_000)])
    assert caught.value.kind == "store_full"
    assert incoming(served) == []
    result = await client.put_segments([noise(300_000)], purpose=Purpose.RESULTS)
    assert served.files.find(result.digest, result.size) is not None, "results may take what inputs must leave"
    monkeypatch.setattr(blob_files, "room_under", lambda folder: Room(200_000, 200_000))
    for purpose in Purpose:
        with pytest.raises(PoolRefused) as caught:
            await client.put_segments([noise(300_000, 2)], purpose=purpose)
        assert caught.value.kind == "too_large"


async def test_what_was_put_as_an_object_is_marked(served: Served) -> None:
    client = served.client()
    for seed, purpose in enumerate(Purpose):
        blob = await client.put_segments([noise(300_000, seed)], purpose=purpose)
        assert blob_files.is_kept(served.files.path(blob.digest).stat()) == (purpose is Purpose.OBJECT)
        again = await client.put_segments([noise(300_000, seed)])
        assert again == blob
        assert blob_files.is_kept(served.files.path(blob.digest).stat()), "it is an object too by now"


@pytest.mark.slow
def test_a_disk_that_fills_up_meanwhile(tmp_path: Path) -> None:
    """Server and client in a process whose files may not grow beyond a limit."""
    program = """
        import asyncio, resource, sys
        from pathlib import Path
        from fallow.model.errors import PoolRefused
        from tests.blobs.conftest import Served, noise

        async def main():
            served = Served(Path(sys.argv[1]) / "blobs")
            await served.server.start("127.0.0.1", 0)
            client = served.client()
            large = await client.put_segments([noise(2_000_000)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
            for attempt in (
                client.put_segments([noise(5_000_000, 2)]),
                client.fetch_file(large.digest, large.size, Path(sys.argv[1]) / "cache"),
            ):
                try:
                    await attempt
                except PoolRefused as error:
                    assert error.kind == "store_full", error
                    assert "full" in str(error), error
                else:
                    raise AssertionError("it fits")
            assert not list((served.files.folder / ".incoming").iterdir())
            assert not list((Path(sys.argv[1]) / "cache").iterdir())
            small = await client.put_segments([noise(1_000_000, 3)])
            assert bytes(await client.fetch(small)) == noise(1_000_000, 3)
            await served.end()

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], cwd=ROOT, timeout=90, check=False
    )
    assert done.returncode == 0


# ---------------------------------------------------------------- asking the pool for URLs


class FakePool:
    """Answers requests for URLs, as a coordinator does over NATS."""

    server_host = "pool.example"

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, object]] = []

    async def request(self, subject: str, message: object, timeout_s: float, again_s: float = 0.0) -> object:
        assert 0 < again_s < timeout_s, "whoever is asked first may be stopped"
        self.asked.append((subject, message))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


async def test_urls_are_asked_of_the_pool() -> None:
    pool = FakePool(
        SignedBlobs(("http://0.0.0.0:80/blobs/x",)), Refused("invalid", "no"), Refused("overloaded", "later")
    )
    sign = pool_signer(pool)  # type: ignore[arg-type]
    assert await sign("GET", Digest("a" * 64), 5) == "http://pool.example:80/blobs/x"
    assert pool.asked == [("fw.pool", SignBlobs("GET", ((Digest("a" * 64), 5),)))]
    with pytest.raises(PoolRefused, match="no"):
        await sign("GET", Digest("a" * 64), 5)
    with pytest.raises(TimeoutError, match="later"):
        await sign("GET", Digest("a" * 64), 5)


def test_reachable() -> None:
    assert reachable("http://0.0.0.0:80/b", "h") == "http://h:80/b"
    assert reachable("http://[::]:80/b", "fe80::1") == "http://[fe80::1]:80/b"
    assert reachable("http://10.0.0.1:80/b", "h") == "http://10.0.0.1:80/b"
    assert reachable("http://0.0.0.0:80/b", "") == "http://0.0.0.0:80/b"


def test_a_server_that_is_not_started_needs_no_aiohttp() -> None:
    program = "import sys, fallow.coordinator.blob_server, fallow.wire.blobs; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
