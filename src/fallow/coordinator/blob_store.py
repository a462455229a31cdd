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

from fallow.coordinator.garbage_log import GarbageLog
from fallow.core.room import GARBAGE_KEPT_S, Room
from fallow.model.errors import SettingError
from fallow.wire.blob_files import BlobFiles, Buffer, is_digest, is_kept, keep, room_under

if TYPE_CHECKING:
    from fallow.coordinator.blob_server import BlobServer

log = logging.getLogger(__name__)

LiveAmong = Callable[[Sequence[str]], Collection[str]]
"""Which of these digests some job needs: Store.live_among."""

NAMED_WITHIN_S = 7.5
"""Whoever has put a blob into a folder names it within this time, so that its owner counts it."""
NAMED_HERE_WITHIN_S = 1.0
"""The same where there is one coordinator, which hears of all names."""
OTHERS_GONE_S = 30.0
"""A coordinator that has not written down its garbage for so long is dead: another one deletes that."""
NONCE_KEPT_S = 86_400.0
"""A coordinator that is alive renews its file far more often."""
MARKED = ".marked"
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
    """How long after its last reference went a blob may be given to `remove`, where room is not known to be short."""
    remove_least_s: float
    """The same where it is."""

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

    def is_alone(self) -> None:
        """This pool has one coordinator: what is named is known here at once, and may be removed sooner for it."""

    def room(self) -> Room | None:
        """What is left of the disk, where that can be known. Raises OSError."""

    def is_there(self, digest: str) -> bool:
        """Whether a blob is there that is named now, and counted: from now on nobody deletes it. Takes microseconds,
        and is called where there is one coordinator."""

    def note_garbage(self, fresh: Sequence[str], garbage: Sequence[str]) -> None:
        """Write down what is to be removed (see GarbageLog.note), where that may be found again after this process."""

    def take_left_garbage(self) -> Sequence[str]:
        """What coordinators that are gone wrote down last. It is this one's to remove now."""

    def remove(self, digests: Sequence[str], needed: Callable[[str], bool]) -> tuple[int, Sequence[str]]:
        """Delete blobs that nobody refers to any more, but for young ones. Returns how many, and those of which it
        cannot be said yet, since somebody has just put them again."""

    def collect(self, live_among: LiveAmong, older_than_s: float) -> int:
        """Delete whatever no job needs and was neither put nor, in a folder, asked for during `older_than_s`.
        Returns how many. May be ended at any point, and run again."""

    def collect_orphans(self, live_among: LiveAmong, needed: Callable[[str], bool], older_than_s: float) -> int:
        """Delete what was put for a job that does not name it, and not touched for so long. Returns how many."""

    def renew_used(self, digests: Sequence[str]) -> None:
        """These are needed by jobs, though no store names them: they are to count as young."""

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

    remove_after_s = GARBAGE_KEPT_S

    def __init__(self, folder: Path, secret: str, host: str, port: int) -> None:
        self.where = str(folder)
        self.folder = str(folder.absolute())
        self.nonce = secrets.token_hex(16)
        self.remove_least_s = NAMED_WITHIN_S
        self._garbage = GarbageLog(folder, self.nonce)
        self._path = folder
        self._secret = secret
        self._listen = host, port
        self._server: BlobServer | None = None

    def prepare(self, pool_id: str) -> None:
        """Leaves a file that shows a client that it sees the same file system; those of long dead coordinators go."""
        try:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._mark_old_ones()
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

    def _mark_old_ones(self) -> None:
        """A folder from before objects were marked: any blob there may be one."""
        stamp = self._path / MARKED
        if stamp.exists():
            return
        for digest in self.digests():
            with contextlib.suppress(FileNotFoundError):
                keep(self._path / digest[:2] / digest)
        stamp.touch(0o600)

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

    def is_alone(self) -> None:
        self.remove_least_s = NAMED_HERE_WITHIN_S

    def room(self) -> Room | None:
        return room_under(self._path)

    def is_there(self, digest: str) -> bool:
        try:
            os.utime(self._path / digest[:2] / digest)
        except FileNotFoundError:
            return False
        except OSError:
            pass  # whoever reads it will hear of that
        return True

    def note_garbage(self, fresh: Sequence[str], garbage: Sequence[str]) -> None:
        self._garbage.note(fresh, garbage)

    def take_left_garbage(self) -> Sequence[str]:
        found: list[str] = []
        for path, digests in self._garbage.left_by_others(self._disks_time() - OTHERS_GONE_S):
            found += digests
            self._garbage.note(digests, found)
            path.unlink(missing_ok=True)
        return found

    def remove(self, digests: Sequence[str], needed: Callable[[str], bool]) -> tuple[int, Sequence[str]]:
        from fallow.coordinator.blob_garbage import delete

        before = self._disks_time() - self.remove_least_s

        def is_garbage(digest: str, about: os.stat_result) -> bool:
            return about.st_mtime < before and not is_kept(about) and not needed(digest)

        files = BlobFiles(self._path)
        count = 0
        young = []
        for digest in digests:
            with contextlib.suppress(OSError):
                about = files.path(digest).stat()
                if about.st_mtime >= before and not is_kept(about):
                    young.append(digest)
                elif is_garbage(digest, about):
                    count += delete(files, digest, is_garbage)
        return count, young

    def _disks_time(self) -> float:
        """By the clock that the files' ages are by, whatever this process thinks of it."""
        try:
            os.utime(self._nonce_file)
            return self._nonce_file.stat().st_mtime
        except OSError:
            return time.time()

    def collect(self, live_among: LiveAmong, older_than_s: float) -> int:
        from fallow.coordinator.blob_garbage import delete_unreferenced

        return delete_unreferenced(BlobFiles(self._path), _Asked(live_among), older_than_s, self._disks_time)

    def collect_orphans(self, live_among: LiveAmong, needed: Callable[[str], bool], older_than_s: float) -> int:
        from fallow.coordinator.blob_garbage import delete_orphans

        if os.name == "nt":  # no file's mode says there what was put as an object
            return 0
        return delete_orphans(BlobFiles(self._path), live_among, needed, self._disks_time() - older_than_s)

    def renew_used(self, digests: Sequence[str]) -> None:
        for digest in digests:
            with contextlib.suppress(OSError):
                os.utime(self._path / digest[:2] / digest)

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
