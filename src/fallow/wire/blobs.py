"""Blobs as clients, agents and coordinators put and fetch them.

Small ones travel inline. Large ones lie in the pool's blob store: where that is a folder of this machine it is
read and written itself, without a copy and without HTTP; else through signed URLs (blob_http).
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.model.errors import PoolRefused
from fallow.model.ids import Digest
from fallow.model.job import INLINE_LIMIT_BYTES, Blob, Purpose
from fallow.wire.blob_files import BlobFiles, Buffer, flat, hash_file, hash_segments, is_digest
from fallow.wire.messages import PoolInfo

if TYPE_CHECKING:
    from fallow.wire.blob_http import HttpBlobs, Pace
    from fallow.wire.connection import Connection

__all__ = [
    "BlobClient",
    "BlobFiles",
    "Buffer",
    "hash_file",
    "hash_segments",
    "inline_blob",
    "local_blob_client",
    "map_file",
    "open_blob_client",
]

_NONCE = re.compile(r"[0-9a-f]{8,64}")
_MISSING_AGAIN_S = 0.05


def inline_blob(segments: Sequence[Buffer]) -> Blob:
    """The segments joined, as a blob that carries its bytes."""
    views = flat(segments)
    data = views[0].obj if len(views) == 1 and isinstance(views[0].obj, bytes) else b"".join(views)
    digest, size = hash_segments([data])
    return Blob(digest, size, data)


def map_file(path: Path, size: int) -> Buffer:
    """The bytes of a file, mapped for reading."""
    if size == 0:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


class BlobClient:
    """Puts and fetches blobs. Used on one event loop; what blocks runs in its threads.

    Raises PoolRefused: kind 'store_full', 'not_found' (the pool has no such blob), 'invalid' (bytes are not what
    their digest says), and PoolUnreachable after bounded retries."""

    def __init__(self, files: BlobFiles | None, remote: HttpBlobs | None) -> None:
        self._files = files
        self._remote = remote
        self._fetching: dict[str, asyncio.Task[Path]] = {}
        self._scratch: Path | None = None

    @property
    def is_local(self) -> bool:
        """The blob store is a folder of this machine."""
        return self._files is not None

    @property
    def local_files(self) -> BlobFiles | None:
        """The store's folder where it is one of this machine: its methods block, and any thread may call them."""
        return self._files

    async def put_segments(
        self, segments: Sequence[Buffer], *, durable: bool = True, purpose: Purpose = Purpose.OBJECT
    ) -> Blob:
        """Put the segments, one after another, as one blob; inline where they are few bytes.

        `durable`: it must survive a loss of power. What belongs to an attached job need not, since its client would
        not survive either (processes may end at any time all the same)."""
        views = flat(segments)
        if sum(view.nbytes for view in views) <= INLINE_LIMIT_BYTES:
            return inline_blob(views)
        if self._files is not None:
            return Blob(*await asyncio.to_thread(self._files.write, views, durable, purpose))
        digest, size = await asyncio.to_thread(hash_segments, views)
        await self._http.put_segments(digest, size, views, purpose)
        return Blob(digest, size)

    async def put_file(
        self,
        path: Path,
        *,
        digest: Digest | None = None,
        size: int | None = None,
        move: bool = False,
        durable: bool = True,
        purpose: Purpose = Purpose.OBJECT,
    ) -> Blob:
        """Put a file, of any size, into the store. `move`: it is not needed any more; with `digest` and `size`,
        which its writer vouches for, it is then not even read where the store is local."""
        if self._files is not None:
            if move and digest is not None and size is not None:
                if not durable and self._files.rename(path, digest, size, False, purpose):
                    return Blob(digest, size)  # here and now: no other thread is woken for it
                await asyncio.to_thread(self._files.move, path, digest, size, durable, purpose)
                return Blob(digest, size)
            blob = Blob(*await asyncio.to_thread(self._files.copy, path, digest, durable, purpose))
        else:
            if digest is not None and size is not None:
                blob = Blob(digest, size)
            else:
                blob = Blob(*await asyncio.to_thread(hash_file, path))
            await self._http.put_file(blob.digest, blob.size, path, purpose)
        if move:
            await asyncio.to_thread(path.unlink)
        return blob

    async def sync(self, digests: Sequence[Digest]) -> None:
        """Make durable what was put without. (A remote store keeps everything so.)"""
        if self._files is not None:
            for digest in digests:
                await asyncio.to_thread(self._files.sync, digest)

    async def fetch_file(self, digest: Digest, size: int, cache_dir: Path) -> Path:
        """A file with the blob's bytes, to read and map, not to change or delete: the store's own where it is
        local, else one in `cache_dir`. Calls for the same blob share one transfer."""
        if not is_digest(digest):
            raise PoolRefused(f"{digest!r} is not the name of a blob.", "invalid")
        if self._files is not None:
            return await self._find(self._files, digest, size)
        target = cache_dir / digest
        if _is_cached(target, size):
            return target
        key = str(target)
        task = self._fetching.get(key)
        if task is None:
            task = asyncio.create_task(self._download(digest, size, target))
            self._fetching[key] = task
            task.add_done_callback(lambda _: self._fetching.pop(key, None))
        return await asyncio.shield(task)

    def at_hand(self, blob: Blob) -> Buffer | None:
        """The blob's bytes where nothing has to be waited for: what it carries, or its file in the store's folder."""
        if blob.data is not None:
            return blob.data
        path = self._files.find(blob.digest, blob.size) if self._files is not None else None
        return map_file(path, blob.size) if path is not None else None

    async def fetch(self, blob: Blob) -> Buffer:
        """The blob's bytes: what it carries, or its file, mapped."""
        if blob.data is not None:
            return blob.data
        if self._files is not None:
            return map_file(await self._find(self._files, blob.digest, blob.size), blob.size)
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="fallow-blobs-"))
        path = await self.fetch_file(blob.digest, blob.size, self._scratch)
        try:
            if os.name == "nt":  # a file that is mapped cannot be deleted there
                return await asyncio.to_thread(path.read_bytes)
            return map_file(path, blob.size)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    async def close(self) -> None:
        """End transfers and connections."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._remote is not None:
            await self._remote.close()
        if self._scratch is not None:
            await asyncio.to_thread(shutil.rmtree, self._scratch, True)
            self._scratch = None

    @property
    def _http(self) -> HttpBlobs:
        assert self._remote is not None
        return self._remote

    async def _find(self, files: BlobFiles, digest: Digest, size: int) -> Path:
        path = files.find(digest, size)
        if path is None:
            await asyncio.sleep(_MISSING_AGAIN_S)  # the garbage collection may look at it just now, and put it back
            path = files.find(digest, size)
        if path is None:
            raise _missing(digest, size)
        return path

    async def _download(self, digest: Digest, size: int, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._http.get(digest, size, target)
        return target


def local_blob_client(files: BlobFiles) -> BlobClient:
    """A client over a folder: a coordinator's own."""
    return BlobClient(files, None)


async def open_blob_client(
    connection: Connection, pool_info: PoolInfo, pace: Pace | None = None, say: Callable[[str], None] | None = None
) -> BlobClient:
    """A client for the pool's blob store. It is local where this process can read the file that the coordinator
    left in it. `pace` holds the rates of what comes and goes by the network. With `say`, which takes a sentence once a
    store is away for half a minute, transfers are tried for a quarter of an hour."""
    files = local_store(pool_info)
    if files is not None:
        await asyncio.to_thread(files.prepare)
        return BlobClient(files, None)
    from fallow.wire.blob_http import ATTEMPTS, PATIENT_ATTEMPTS, HttpBlobs, pool_signer

    attempts = ATTEMPTS if say is None else PATIENT_ATTEMPTS
    return BlobClient(None, HttpBlobs(pool_signer(connection), pace=pace, attempts=attempts, say=say))


def local_store(pool_info: PoolInfo) -> BlobFiles | None:
    """The pool's blob store if it is a folder that this process can use."""
    if not pool_info.blob_dir or not _NONCE.fullmatch(pool_info.blob_nonce):
        return None
    folder = Path(pool_info.blob_dir)
    try:
        (folder / f".fallow-{pool_info.blob_nonce}").read_bytes()
    except OSError:
        return None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return None
    return BlobFiles(folder, durable=not pool_info.embedded)


def _is_cached(path: Path, size: int) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except OSError:
        return False
    return True


def _missing(digest: str, size: int) -> PoolRefused:
    return PoolRefused(
        f"the pool no longer has the blob {digest[:16]} ({size} bytes): it was deleted as unused, or its job ended.",
        "not_found",
    )
