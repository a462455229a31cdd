"""Serves the local blob folder over HTTP to nodes and clients on other machines, through signed URLs.

A URL is good for one method, one blob and some minutes; its signature is an HMAC under a key derived from the
pool's secret, so that every coordinator of the pool accepts it. Nothing is served without one.

    GET   whole or with Range.
    HEAD  with a URL for GET: the size. With one for PUT: how much of this upload (header Upload-Id) is there,
          in the header Upload-Offset; equal to the size where the blob is whole.
    PUT   with Content-Range from that offset on; the header Upload-For says what for (model.job.Purpose).
          200/201: the blob is there. 409: the offset is another. 413: too many bytes. 422: not the bytes of that
          digest; 507: the disk is full; both forget the upload.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import blake3

from fallow.model.errors import NO_ROOM, PoolRefused
from fallow.model.job import Purpose
from fallow.wire.blob_files import (
    INCOMING,
    BlobFiles,
    check_result_room,
    check_room,
    is_digest,
    keep,
    no_room,
    to_the_end,
    write_all,
)
from fallow.wire.blob_http import UPLOAD_FOR, UPLOAD_ID, UPLOAD_OFFSET

if TYPE_CHECKING:
    from aiohttp import web

URL_LIFETIME_S = 900.0
"""A transfer that has begun goes on beyond it; one that is cut gets a new URL."""

_UPLOAD = re.compile(r"[0-9a-f]{8,32}")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_WRITE_BYTES = 1 << 20
_STATUS = {"store_full": 507, "too_large": 413}


class BlobServer:
    """`start()` it behind the first answers of a coordinator: importing aiohttp takes time."""

    def __init__(self, folder: Path, secret: str, durable: bool = True, clock: Callable[[], float] = time.time) -> None:
        self.files = BlobFiles(folder, durable)
        self.base_url = ""
        self._key = hmac.digest(secret.encode(), b"fallow blob urls 1", "sha256")
        self._clock = clock
        self._runner: web.AppRunner | None = None
        self._uploads: dict[str, asyncio.Task[Any]] = {}

    async def start(self, host: str, port: int) -> str:
        """Listen (port 0: any free one) and return the base URL. Raises OSError where the address is taken."""
        from aiohttp import web

        await to_the_end(self.files.prepare)
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/blobs/{digest}", self._handle)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        bound = runner.addresses[0]
        name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        self.base_url = f"http://{name}:{bound[1]}"
        return self.base_url

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def sign(self, method: str, digest: str, size: int, now_unix_s: float) -> str:
        """A URL for 'GET' or 'PUT' of one blob, good for URL_LIFETIME_S. Raises ValueError for anything else."""
        if method not in ("GET", "PUT") or not is_digest(digest) or size < 0:
            raise ValueError(f"no URL for {method} of {digest!r}, {size} bytes")
        expires = int(now_unix_s + URL_LIFETIME_S)
        query = urlencode(
            {
                "method": method,
                "size": size,
                "expires": expires,
                "signature": self._signature(method, digest, size, expires),
            }
        )
        return f"{self.base_url}/blobs/{digest}?{query}"

    def _signature(self, method: str, digest: str, size: int, expires: int) -> str:
        return hmac.new(self._key, f"{method}\n{digest}\n{size}\n{expires}".encode(), hashlib.sha256).hexdigest()

    # ------------------------------------------------------------ requests

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        digest, query = request.match_info["digest"], request.query
        method, size, expires = query.get("method", ""), query.get("size", ""), query.get("expires", "")
        if not (is_digest(digest) and _is_number(size) and _is_number(expires)):
            return _answer(400, "not a URL of this pool's blob store")
        signature = self._signature(method, digest, int(size), int(expires))
        if not hmac.compare_digest(signature.encode(), query.get("signature", "").encode()):
            return _answer(403, "the URL's signature is wrong")
        if self._clock() >= int(expires):
            return _answer(403, "the URL has expired")
        if request.method != method and request.method != "HEAD":
            return _answer(405, f"the URL is for {method}")
        if method == "GET":
            return await self._get(digest, int(size))
        upload = request.headers.get(UPLOAD_ID, "")
        if not _UPLOAD.fullmatch(upload):
            return _answer(400, f"the header {UPLOAD_ID} must be 8 to 32 hex digits")
        async with self._alone(f"{digest}.{upload}"):
            part = self.files.folder / INCOMING / f"{digest}.{upload}"
            return await self._upload(request, digest, int(size), part)

    async def _get(self, digest: str, size: int) -> web.StreamResponse:
        from aiohttp import web

        path = self.files.find(digest, size)
        if path is None:
            return _answer(404, f"no blob {digest[:16]} of {size} bytes: it was deleted as unused, or its job ended")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    @contextlib.asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """One request at a time for an upload. The newest wins: an older one waits for bytes of a connection that
        its client has given up."""
        task = asyncio.current_task()
        assert task is not None
        while (older := self._uploads.get(name)) is not None:
            older.cancel()
            await asyncio.wait([older])
            if self._uploads.get(name) is older:
                del self._uploads[name]
        self._uploads[name] = task
        try:
            yield
        finally:
            if self._uploads.get(name) is task:
                del self._uploads[name]

    async def _upload(self, request: web.Request, digest: str, size: int, part: Path) -> web.StreamResponse:
        try:
            purpose = _purpose(request.headers.get(UPLOAD_FOR, ""))
            if self.files.use(digest, size) is not None:
                if purpose is Purpose.OBJECT:
                    keep(self.files.path(digest))
                return _answer(200, "", size)
            offset = part.stat().st_size if part.exists() else 0
            if purpose is not Purpose.RESULTS:
                check_room(self.files.folder, size - offset)
            else:
                check_result_room(self.files.folder, size - offset)
            if offset >= size:  # an empty blob, or an attempt that ended after its last byte
                return await self._finish(digest, size, part, purpose)
            if request.method == "HEAD":
                return _answer(200, "", offset)
            wanted = _RANGE.fullmatch(request.headers.get("Content-Range", f"bytes 0-{size - 1}/{size}"))
            if wanted is None or int(wanted[3]) != size:
                return _answer(400, "Content-Range must be 'bytes FIRST-LAST/SIZE' with the blob's size")
            if int(wanted[1]) != offset:
                return _answer(409, f"this upload has {offset} bytes", offset)
            written = await self._receive(request, part, offset, size)
            if written > size:
                part.unlink(missing_ok=True)
                return _answer(413, f"more bytes came than the blob's {size}")
            if written < size:
                return _answer(409, f"this upload has {written} bytes", written)
            return await self._finish(digest, size, part, purpose)
        except PoolRefused as error:
            part.unlink(missing_ok=True)
            return _answer(_STATUS.get(error.kind, 422), str(error))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            part.unlink(missing_ok=True)
            return _answer(507, str(no_room(self.files.folder)))

    async def _finish(self, digest: str, size: int, part: Path, purpose: Purpose) -> web.Response:
        part.touch(0o600)
        if part.stat().st_size != size or await to_the_end(_digest_of, part) != digest:
            part.unlink(missing_ok=True)
            return _answer(422, f"the bytes that came are not those of {digest[:16]}")
        await to_the_end(self.files.move, part, digest, size, True, purpose)
        return _answer(201, "", size)

    async def _receive(self, request: web.Request, part: Path, offset: int, size: int) -> int:
        """Append the request's body to the part, and return the part's size; more than `size` if there was more.
        What came before a cut connection stays."""
        from aiohttp.web import RequestPayloadError

        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        waiting: list[bytes] = []
        held = 0
        try:
            async for chunk in request.content.iter_any():
                waiting.append(chunk)
                held += len(chunk)
                if offset + held > size:
                    return offset + held
                if held >= _WRITE_BYTES:
                    data, waiting, held = b"".join(waiting), [], 0
                    offset += len(data)
                    await to_the_end(write_all, descriptor, data)
            return offset + held
        except (ConnectionError, RequestPayloadError):
            return offset + held
        finally:
            try:
                if waiting:
                    write_all(descriptor, b"".join(waiting))
            finally:
                os.close(descriptor)


def _purpose(text: str) -> Purpose:
    try:
        return Purpose(text)
    except ValueError:
        return Purpose.OBJECT


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _digest_of(path: Path) -> str:
    return blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(path).hexdigest()


def _answer(status: int, words: str, offset: int | None = None) -> web.Response:
    from aiohttp import web

    headers = {} if offset is None else {UPLOAD_OFFSET: str(offset)}
    return web.Response(status=status, text=words, headers=headers)
