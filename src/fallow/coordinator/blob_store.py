"""Where a pool's blobs lie: a folder that this coordinator serves itself, or a bucket of an S3 service.

Both give out URLs for one method of one blob (wire.messages.SignBlobs) and delete what no job needs. Nothing that is
young is ever deleted: between putting a blob and committing the job that names it, only its age speaks for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fallow.model.errors import SettingError
from fallow.wire.blob_files import BlobFiles, Buffer, is_digest

if TYPE_CHECKING:
    from fallow.coordinator.blob_server import BlobServer

log = logging.getLogger(__name__)

LiveAmong = Callable[[Sequence[str]], Collection[str]]
"""Which of these digests some job needs: Store.live_among."""

LOCAL_REMOVE_AFTER_S = 15.0
NONCE_KEPT_S = 86_400.0
"""A coordinator that is alive renews its file far more often."""
_READ_BYTES = 4 << 20


class BlobStore(Protocol):
    """Methods that are not coroutines block, but for `sign`; call them in a thread."""

    where: str
    """To show to people."""
    folder: str
    """For PoolInfo.blob_dir; '' where there is none that a client of the same machine could use itself."""
    nonce: str
    """For PoolInfo.blob_nonce."""
    remove_after_s: float
    """How long after its last reference went a blob may be given to `remove`."""

    def prepare(self, pool_id: str) -> None:
        """Check that blobs can be put and got here, for this pool. Raises FallowError in words."""

    def is_at(self, where: str, nonce: str) -> bool:
        """Whether another coordinator, which says so of its blobs, keeps them in the same place. Before `prepare`."""

    def renew(self) -> None:
        """Show that this coordinator is still there. Called now and then."""

    async def start(self) -> None:
        """Serve, where that is up to us."""

    async def stop(self) -> None: ...

    def sign(self, method: str, digest: str, size: int) -> str | None:
        """A URL for 'GET', 'PUT' or, in S3, 'HEAD' of one blob, good for some minutes; None: not yet. Raises
        ValueError for anything else."""

    def remove(self, digests: Sequence[str], needed: Callable[[str], bool]) -> int:
        """Delete blobs that nobody refers to any more, but for young ones. Returns how many."""

    def collect(self, live_among: LiveAmong, older_than_s: float) -> int:
        """Delete whatever no job needs and was neither put nor, in a folder, asked for during `older_than_s`.
        Returns how many. May be ended at any point, and run again."""

    # ------------------------------------------------------------ copies, for backups

    def digests(self) -> Iterator[str]:
        """All blobs that are there."""

    def size_of(self, digest: str) -> int | None:
        """Bytes; None where it is not there."""

    def read(self, digest: str) -> Iterator[Buffer]:
        """The blob's bytes, some at a time; a buffer is good until the next one. Raises FileNotFoundError."""

    def write(self, digest: str, source: Path) -> None:
        """Put a copy of a file, of whose digest the caller is sure."""


def open_blob_store(where: str, secret: str, http_host: str = "127.0.0.1", http_port: int = 0) -> BlobStore:
    """The store for `s3://...` or a folder. Nothing is touched yet. Raises SettingError for what cannot be read."""
    if where.startswith("s3://"):
        from fallow.coordinator.s3_blobs import S3Blobs

        return S3Blobs(where)
    if "://" in where:
        shown = where.partition("://")[0]
        raise SettingError(f"blobs cannot be kept in {shown}://...: name a folder, or s3://BUCKET/PREFIX?endpoint=URL.")
    return FolderBlobs(Path(where), secret, http_host, http_port)


class FolderBlobs:
    """A folder of this machine, served over HTTP to others."""

    remove_after_s = LOCAL_REMOVE_AFTER_S

    def __init__(self, folder: Path, secret: str, host: str, port: int) -> None:
        self.where = str(folder)
        self.folder = str(folder.absolute())
        self.nonce = secrets.token_hex(16)
        self._path = folder
        self._secret = secret
        self._listen = host, port
        self._server: BlobServer | None = None

    def prepare(self, pool_id: str) -> None:
        """Leaves a file that shows a client that it sees the same file system; those of long dead coordinators go."""
        try:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in self._path.glob(".fallow-*"):  # others may use the same folder
                with contextlib.suppress(FileNotFoundError):
                    if old.stat().st_mtime < time.time() - NONCE_KEPT_S:
                        old.unlink()
            descriptor = os.open(self._nonce_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, self.nonce.encode())
            os.close(descriptor)
        except OSError as error:
            raise SettingError(
                f"blobs cannot be kept in {self._path}: {error.strerror or error}. Name a folder that may be written."
            ) from error

    def is_at(self, where: str, nonce: str) -> bool:
        # By what the other has left there: the folder may be mounted under another name here.
        return nonce.isalnum() and (self._path / f".fallow-{nonce}").exists()

    @property
    def _nonce_file(self) -> Path:
        return self._path / f".fallow-{self.nonce}"

    def renew(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._nonce_file)

    async def start(self) -> None:
        from fallow.coordinator.blob_server import BlobServer

        server = BlobServer(self._path, self._secret)
        try:
            await server.start(*self._listen)
        except OSError as error:
            log.error("the blob server cannot listen on %s: %s", self._listen[0], error)
            return
        self._server = server

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
        with contextlib.suppress(OSError):
            self._nonce_file.unlink()

    def sign(self, method: str, digest: str, size: int) -> str | None:
        if self._server is None:
            return None
        return self._server.sign(method, digest, size, time.time())

    def remove(self, digests: Sequence[str], needed: Callable[[str], bool]) -> int:
        young = time.time() - LOCAL_REMOVE_AFTER_S / 2
        count = 0
        for digest in digests:
            path = self._path / digest[:2] / digest
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < young and not needed(digest):
                    path.unlink()
                    count += 1
        return count

    def collect(self, live_among: LiveAmong, older_than_s: float) -> int:
        from fallow.coordinator.blob_garbage import delete_unreferenced

        return delete_unreferenced(BlobFiles(self._path), _Asked(live_among), older_than_s)

    # ------------------------------------------------------------ copies, for backups

    def digests(self) -> Iterator[str]:
        for folder in sorted(self._path.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(name for name in os.listdir(folder) if is_digest(name) and name[:2] == folder.name)

    def size_of(self, digest: str) -> int | None:
        try:
            return (self._path / digest[:2] / digest).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, digest: str) -> Iterator[Buffer]:
        with (self._path / digest[:2] / digest).open("rb", buffering=0) as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk

    def write(self, digest: str, source: Path) -> None:
        files = BlobFiles(self._path)
        files.prepare()
        files.copy(source, digest)


class _Asked(Container[str]):
    """Live digests, asked for one at a time: a pool may have more than memory holds."""

    def __init__(self, live_among: LiveAmong) -> None:
        self._live_among = live_among

    def __contains__(self, digest: object) -> bool:
        return digest in self._live_among([str(digest)])
