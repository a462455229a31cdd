"""Blobs over HTTP: transfers that go on where a cut connection left them, through URLs that expire.

GET with Range; PUT with Content-Range, after HEAD told how much of this upload is there (header Upload-Offset).
Where the URLs are those of an S3 service, a PUT is of the whole blob: S3 keeps nothing of one that was cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import blake3

from fallow.model.errors import NO_ROOM, PoolRefused, PoolUnreachable
from fallow.model.ids import Digest
from fallow.model.job import Purpose
from fallow.wire import subjects
from fallow.wire.blob_files import no_room, to_the_end, write_all
from fallow.wire.messages import Refused, SignBlobs, SignedBlobs
from fallow.wire.repeats import AGAIN_S

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

    from fallow.wire.connection import Connection

UPLOAD_ID = "Upload-Id"
UPLOAD_OFFSET = "Upload-Offset"
UPLOAD_FOR = "Upload-For"
"""A Purpose."""

ATTEMPTS = 12
"""Attempts in a row that bring nothing, after which a transfer fails: about 30 s. An S3 service that is started again
may take 20 of them until it answers."""
PATIENT_ATTEMPTS = 190
"""About 15 minutes, as long as a customer's questions are asked again: a job of hours is not to end because the blob
store was away for one."""

S3_SKIP_S = 300.0
"""A blob that lies in S3 for less than this is not put again. An older one is: that makes it young, so that the
collection of garbage does not take it before a job names it."""

CLOCKS_APART_S = 120.0
"""More than that between the clock of an S3 service and that of a coordinator is said to whoever is refused. (Services
refuse what was signed a quarter of an hour ago.)"""
YOUNG_MARGIN_S = 30.0
_CHUNK_BYTES = 1 << 20
_PACED_BYTES = 64 * 1024
"""Where a rate is to be held, transfers go in pieces of this size, so that they are even."""
_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0
_SIGN_TIMEOUT_S = 5.0
_BACKOFF_LIMIT_S = 5.0
_CONNECTIONS = 8


def _clocks_apart_s(answer: aiohttp.ClientResponse) -> float:
    """By how much the clock of a service is ahead of whoever signed the URL; 0.0 where that is little, or not said."""
    try:
        there = parsedate_to_datetime(answer.headers["Date"])
        signed = datetime.strptime(answer.url.query[_S3_SIGNED_AT], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except (KeyError, ValueError, TypeError):
        return 0.0
    apart_s = (there - signed).total_seconds()
    return apart_s if abs(apart_s) > CLOCKS_APART_S else 0.0


_S3 = "X-Amz-Signature"
_S3_SIGNED_AT = "X-Amz-Date"
_S3_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull"})
_S3_CODE = re.compile(r"<Code>(\w+)</Code>")

Signer = Callable[[str, Digest, int], Awaitable[str]]
"""(method, digest, size) -> URL, good for some minutes. Raises TimeoutError, PoolRefused."""


def pool_signer(connection: Connection) -> Signer:
    """URLs signed by any coordinator of the pool. One that listens on every address of its machine cannot know by
    which of them it is reached: then it is the host that NATS was reached by."""

    async def sign(method: str, digest: Digest, size: int) -> str:
        answer = await connection.request(subjects.POOL, SignBlobs(method, ((digest, size),)), _SIGN_TIMEOUT_S, AGAIN_S)
        if isinstance(answer, Refused):
            if answer.kind == "overloaded":
                raise TimeoutError(answer.message)
            raise PoolRefused(answer.message, answer.kind)
        if not isinstance(answer, SignedBlobs) or len(answer.urls) != 1:
            raise TimeoutError("the pool answered something else than a URL")
        return reachable(answer.urls[0], connection.server_host)

    return sign


def reachable(url: str, host: str) -> str:
    """The URL with `host` in place of an address that means 'every address of this machine'."""
    for anywhere in ("//0.0.0.0:", "//[::]:"):
        if host and anywhere in url:
            return url.replace(anywhere, f"//[{host}]:" if ":" in host else f"//{host}:", 1)
    return url


class Pace(Protocol):
    """Holds a rate: whoever has sent or received so many bytes waits here."""

    async def sent(self, size: int) -> None: ...

    async def received(self, size: int) -> None: ...


class _Cut(Exception):
    """The transfer did not come to its end; another attempt may."""


class _Troubled(_Cut):
    """The S3 service answered that it cannot: many say no more where their disk is full."""


class _Apart(_Cut):
    """The S3 service refuses what was signed by a clock that its own is far from."""


class _Attempts:
    """Attempts of one transfer in a row that brought nothing."""

    def __init__(self, what: str, limit: int, backoff_s: float, say: Callable[[str], None] | None) -> None:
        self._what = what
        self._limit = limit
        self._backoff_s = backoff_s
        self._say = say
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    async def failed(self, error: BaseException) -> None:
        """Wait before the next attempt, or raise PoolUnreachable if this was the last."""
        self._failures += 1
        if self._failures >= self._limit:
            raise PoolUnreachable(self._words(error)) from error
        if self._failures == ATTEMPTS and self._say is not None:
            self._say(self._words(error))
        delay_s = min(_BACKOFF_LIMIT_S, self._backoff_s * 2 ** (self._failures - 1))
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))

    def _words(self, error: BaseException) -> str:
        hint = "Is the pool's HTTP port open to this machine?"
        if isinstance(error, _Troubled):
            hint = "It may be out of room: its log says more. Free some room there."
        elif isinstance(error, _Apart):
            hint = "Let both be set from the network (NTP)."
        return f"{self._what} failed {self._failures} times in a row: {error or type(error).__name__}. {hint}"


class HttpBlobs:
    """Transfers for one event loop. `backoff_s`: the wait after the first failure, doubled with each further one.
    `pace`: holds the rates of all transfers together. `say` takes a sentence when ATTEMPTS have failed, and more are
    made."""

    def __init__(
        self,
        sign: Signer,
        backoff_s: float = 0.1,
        attempts: int = ATTEMPTS,
        pace: Pace | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._sign = sign
        self._pace = pace
        self._piece_bytes = _CHUNK_BYTES if pace is None else _PACED_BYTES
        self._backoff_s = backoff_s
        self._limit = attempts
        self._say = say
        self._client: aiohttp.ClientSession | None = None
        self._young: dict[Digest, float] = {}
        """Blobs that lie in S3 since a short while ago, and until when (monotonic) that holds."""

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def get(self, digest: Digest, size: int, target: Path) -> None:
        """Fetch into `target`, which appears when it is whole and right."""
        part = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            try:
                await self._get(digest, size, descriptor)
            finally:
                os.close(descriptor)
            os.replace(part, target)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise no_room(target.parent) from error
            raise
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    async def put_segments(
        self, digest: Digest, size: int, segments: Sequence[memoryview], purpose: Purpose = Purpose.OBJECT
    ) -> None:
        """Send the segments, one after another."""

        async def read(offset: int) -> AsyncIterator[bytes]:
            for segment in segments:
                if offset >= segment.nbytes:
                    offset -= segment.nbytes
                    continue
                for first in range(offset, segment.nbytes, self._piece_bytes):
                    yield bytes(segment[first : first + self._piece_bytes])
                offset = 0

        await self._put(digest, size, read, purpose)

    async def put_file(self, digest: Digest, size: int, path: Path, purpose: Purpose = Purpose.OBJECT) -> None:
        """Send a file."""

        async def read(offset: int) -> AsyncIterator[bytes]:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                left = size - offset
                while left > 0:
                    chunk = await to_the_end(file.read, min(self._piece_bytes, left))
                    if not chunk:
                        raise PoolRefused(f"{path} became shorter while it was sent.", "invalid")
                    left -= len(chunk)
                    yield chunk

        await self._put(digest, size, read, purpose)

    # ------------------------------------------------------------ inside

    async def _get(self, digest: Digest, size: int, descriptor: int) -> None:
        attempts = _Attempts(f"fetching blob {digest[:16]} ({size} bytes)", self._limit, self._backoff_s, self._say)
        session = self._session()
        for _ in range(2):  # wrong bytes may have been changed on the way: once more from the start
            hasher = blake3.blake3()
            offset = 0
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            while offset < size:
                try:
                    url = _as_signed(await self._sign("GET", digest, size))
                    async with session.get(url, headers={"Range": f"bytes={offset}-"}) as answer:
                        await _check(answer, digest)
                        if answer.status != 206 and offset > 0:
                            raise _Cut("the server sends from the start only")
                        async for chunk in answer.content.iter_chunked(self._piece_bytes):
                            chunk = chunk[: size - offset]
                            await to_the_end(_write_and_hash, descriptor, hasher, chunk)
                            offset += len(chunk)
                            attempts.progressed()
                            if self._pace is not None:
                                await self._pace.received(len(chunk))
                    if offset < size:
                        raise _Cut("the server sent too little")
                except _again() as error:
                    await attempts.failed(error)
            if hasher.hexdigest() == digest:
                return
        raise PoolRefused(f"the pool's copy of blob {digest[:16]} is damaged: its bytes are not its own.", "invalid")

    async def _put(
        self, digest: Digest, size: int, read: Callable[[int], AsyncIterator[bytes]], purpose: Purpose
    ) -> None:
        if self._young.get(digest, 0.0) > time.monotonic():
            return
        attempts = _Attempts(f"sending blob {digest[:16]} ({size} bytes)", self._limit, self._backoff_s, self._say)
        session = self._session()
        upload = {UPLOAD_ID: secrets.token_hex(8), UPLOAD_FOR: purpose.value}
        reached = 0
        source: list[Exception] = []

        async def body(offset: int) -> AsyncIterator[bytes]:
            try:
                async for chunk in read(offset):
                    if self._pace is not None:
                        await self._pace.sent(len(chunk))
                    yield chunk
            except Exception as error:
                source.append(error)  # aiohttp makes a failed connection of it
                raise

        while True:
            try:
                url = _as_signed(await self._sign("PUT", digest, size))
                if _S3 in url.query:
                    if not await self._is_in_s3(digest, size):
                        await self._put_whole(url, digest, size, body(0))
                        self._note_young(digest, S3_SKIP_S)
                    return
                async with session.head(url, headers=upload) as answer:
                    await _check(answer, digest)
                    offset = int(answer.headers.get(UPLOAD_OFFSET, "0"))
                if offset >= size:
                    return
                if offset > reached:
                    reached = offset
                    attempts.progressed()
                headers = upload | {
                    "Content-Range": f"bytes {offset}-{size - 1}/{size}",
                    "Content-Length": str(size - offset),
                    "Content-Type": "application/octet-stream",
                }
                async with session.put(url, headers=headers, data=body(offset)) as answer:
                    await _check(answer, digest)
                return
            except _again() as error:
                if source:
                    raise source[0] from None
                await attempts.failed(error)

    async def _is_in_s3(self, digest: Digest, size: int) -> bool:
        """Say whether it was put a short while ago, by the service's own clock."""
        url = _as_signed(await self._sign("HEAD", digest, size))
        async with self._session().head(url) as answer:
            if answer.status == 404:
                return False
            await _check(answer, digest)
            try:
                age = parsedate_to_datetime(answer.headers["Date"]) - parsedate_to_datetime(
                    answer.headers["Last-Modified"]
                )
            except (KeyError, ValueError, TypeError):
                return False
            left_s = S3_SKIP_S - age.total_seconds()
            if answer.content_length != size or left_s <= 0:
                return False
            self._note_young(digest, left_s)
            return True

    def _note_young(self, digest: Digest, left_s: float) -> None:
        """The same code comes with every job of a script: while it is young in S3, that is not even asked."""
        now = time.monotonic()
        self._young = {known: until for known, until in self._young.items() if until > now}
        self._young[digest] = now + min(left_s, S3_SKIP_S) - YOUNG_MARGIN_S

    async def _put_whole(self, url: URL, digest: Digest, size: int, body: AsyncIterator[bytes]) -> None:
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        async with self._session().put(url, headers=headers, data=body if size else b"") as answer:
            await _check(answer, digest)

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            import aiohttp

            self._client = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S),
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                auto_decompress=False,
            )
        return self._client


def _as_signed(url: str) -> URL:
    """The very letters that were signed."""
    from yarl import URL

    return URL(url, encoded=True)


def _again() -> tuple[type[BaseException], ...]:
    """What another attempt may mend."""
    import aiohttp

    return (_Cut, TimeoutError, aiohttp.ClientError, ConnectionError)


async def _check(answer: aiohttp.ClientResponse, digest: str) -> None:
    """Raises for anything but a success: PoolRefused where another attempt would not help, else _Cut."""
    if answer.status < 300:
        return
    words = (await answer.text(errors="replace")).strip()[:500] or f"HTTP {answer.status}"
    kind = {404: "not_found", 413: "too_large", 422: "invalid", 507: "store_full"}.get(answer.status)
    if answer.status in (400, 403) and (apart_s := _clocks_apart_s(answer)):
        ahead = "ahead of" if apart_s > 0 else "behind"
        raise _Apart(f"the S3 service's clock is {abs(apart_s) / 60:.0f} min {ahead} the pool's coordinators'")
    if code := _S3_CODE.search(words):
        if code[1] == "EntityTooLarge":
            raise PoolRefused(f"blob {digest[:16]} is larger than the S3 service takes in one piece.", "invalid")
        if code[1] in _S3_FULL or answer.status == 507:
            raise PoolRefused(
                f"the disk of the pool's S3 service is full ({code[1]}). Free some room there.", "store_full"
            )
        words = f"the S3 service answered {code[1]}"
        if answer.status >= 500:
            raise _Troubled(words)
        if kind == "not_found" and code[1] == "NoSuchKey":
            words = f"the pool no longer has the blob {digest[:16]}: it was deleted as unused, or its job ended."
        elif kind == "not_found":
            kind = None
    if kind is None:
        raise _Cut(words)
    if answer.method == "HEAD":  # has no body
        words = {
            "not_found": f"the pool no longer has the blob {digest[:16]}.",
            "too_large": "it does not fit on the disk of the pool's blob store, even if that were empty.",
            "store_full": "the disk of the pool's blob store is full. Free some room there and run again.",
        }.get(kind, words)
    raise PoolRefused(words, kind)


def _write_and_hash(descriptor: int, hasher: blake3.blake3, chunk: bytes) -> None:
    write_all(descriptor, chunk)
    hasher.update(chunk)
