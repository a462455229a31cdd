"""A folder of blobs, named by what they hold: <folder>/<first two characters>/<digest>.

Files are written under <folder>/.incoming and moved to their place when they are whole, so that nobody ever sees
half a blob. A blob that is asked for or put again becomes young again: the garbage collection takes old ones only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import blake3

from fallow.core.room import Room
from fallow.model.errors import NO_ROOM, PoolRefused
from fallow.model.ids import Digest
from fallow.model.job import Purpose

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

_T = TypeVar("_T")

INCOMING = ".incoming"
TOUCH_AFTER_S = 600.0
"""A blob's age is renewed by its use, at most this often."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 4 << 20
_PARALLEL_BYTES = 8 << 20
"""From this size on, hashing and writing take a thread each."""


_KEPT = stat.S_IXUSR
"""This bit of a blob's mode says that it was put as an object: nobody would look for it elsewhere."""


def is_kept(about: os.stat_result) -> bool:
    """Whether the blob was put as an object (too)."""
    return bool(about.st_mode & _KEPT)


def keep(path: Path) -> None:
    """From now on it is an object, which does not go with the jobs that name it. Raises FileNotFoundError."""
    os.chmod(path, 0o600 | _KEPT)


def room_under(folder: Path) -> Room:
    """Of the disk that holds the folder. Raises OSError."""
    usage = shutil.disk_usage(folder)
    return Room(usage.free, usage.total)


def check_room(folder: Path, size: int) -> None:
    """Raises PoolRefused where inputs or objects of so many bytes have no room now ('store_full'), or never have
    ('too_large')."""
    room = room_under(folder)
    if room.takes_inputs(size):
        return
    from fallow.core.quantities import size_words

    if not room.could_take_inputs(size):
        raise PoolRefused(
            f"{size_words(size)} do not fit on the disk under {folder}, which holds {size_words(room.total)} in all "
            f"and must keep {size_words(room.inputs_leave)} free for results. Send less at a time, or keep the pool's "
            "blobs on a larger disk.",
            "too_large",
        )
    raise no_room(folder, f": {size_words(size)} are to be put, and {size_words(room.free)} are free")


def check_result_room(folder: Path, size: int) -> None:
    """Raises PoolRefused where a result of so many bytes has no room now ('store_full': half of it would only be in the
    way of others), or never has ('too_large')."""
    room = room_under(folder)
    if size > room.total:
        from fallow.core.quantities import size_words

        raise PoolRefused(
            f"a result of {size_words(size)} does not fit on the disk under {folder}, which holds "
            f"{size_words(room.total)} in all.",
            "too_large",
        )
    if size > room.free:
        raise no_room(folder)


def is_digest(text: str) -> bool:
    """Say whether the text may stand in a path or URL as a blob's name."""
    return _DIGEST.fullmatch(text) is not None


def flat(segments: Iterable[Buffer]) -> list[memoryview]:
    """The segments as bytes, without a copy, and without empty ones. They must be contiguous."""
    views = (memoryview(segment) for segment in segments)
    return [view.cast("B") for view in views if view.nbytes]


def hash_segments(segments: Iterable[Buffer]) -> tuple[Digest, int]:
    """(digest, size in bytes) of the segments, one after another."""
    if type(segments) is list and len(segments) == 1 and type(segments[0]) is bytes:  # a single call
        return Digest(blake3.blake3(segments[0]).hexdigest()), len(segments[0])
    views = flat(segments)
    size = sum(view.nbytes for view in views)
    hasher = _hasher(size)
    for view in views:
        hasher.update(view)
    return Digest(hasher.hexdigest()), size


def hash_file(path: Path) -> tuple[Digest, int]:
    """(digest, size in bytes) of a file."""
    size = 0
    hasher = _hasher(path.stat().st_size)
    for chunk in _chunks(path):
        hasher.update(chunk)
        size += len(chunk)
    return Digest(hasher.hexdigest()), size


class BlobFiles:
    """`durable`: what was put survives a loss of power, not only of the process; a single put may do without, where
    nobody would miss the blob after such a loss. Methods block; any thread may call them. Errors of the disk come as
    PoolRefused('store_full') where there is no room, else as OSError."""

    def __init__(self, folder: Path, durable: bool = True) -> None:
        self.folder = folder
        self._durable = durable and hasattr(os, "O_DIRECTORY")

    def prepare(self) -> None:
        """Make the folder, for its owner's eyes only."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / INCOMING).mkdir(exist_ok=True, mode=0o700)

    def path(self, digest: str) -> Path:
        """Where a blob lies, or would. Raises ValueError for what is no digest."""
        if not is_digest(digest):
            raise ValueError(f"not a digest: {digest!r}")
        return self.folder / digest[:2] / digest

    def find(self, digest: str, size: int) -> Path | None:
        """The blob's path if it is there, renewed in age."""
        path = self.path(digest)
        return path if self._renew(path, size, TOUCH_AFTER_S) else None

    def use(self, digest: str, size: int) -> Path | None:
        """As `find`, for somebody who is about to name the blob: it is as young as if he had put it now."""
        path = self.path(digest)
        return path if self._renew(path, size, 0.0) else None

    def write(
        self, segments: Sequence[Buffer], durable: bool = True, purpose: Purpose = Purpose.OBJECT
    ) -> tuple[Digest, int]:
        """Put the segments, one after another, as one blob: hashed while they are written."""
        views = flat(segments)
        size = sum(view.nbytes for view in views)
        if purpose is not Purpose.RESULTS:
            check_room(self.folder, size)
        with self._incoming() as temporary:
            with _created(temporary, self._durable and durable) as descriptor:
                if size < _PARALLEL_BYTES:
                    digest = _hash_and_write(descriptor, views, size)
                else:
                    digest = _hash_beside_writing(descriptor, views)
            self._place(temporary, digest, size, durable, purpose)
        return digest, size

    def copy(
        self,
        source: Path,
        digest: str | None = None,
        durable: bool = True,
        purpose: Purpose = Purpose.OBJECT,
    ) -> tuple[Digest, int]:
        """Put a copy of a file, hashed while it is read. Raises PoolRefused('invalid') where `digest`
        says otherwise."""
        size = 0
        expected = source.stat().st_size
        if purpose is not Purpose.RESULTS:
            check_room(self.folder, expected)
        else:
            check_result_room(self.folder, expected)
        hasher = _hasher(expected)
        with self._incoming() as temporary:
            with _created(temporary, self._durable and durable) as descriptor:
                for chunk in _chunks(source):
                    hasher.update(chunk)
                    write_all(descriptor, chunk)
                    size += len(chunk)
            found = Digest(hasher.hexdigest())
            if digest is not None and found != digest:
                raise PoolRefused(f"{source} does not hold what its digest says: it changed, or is damaged.", "invalid")
            self._place(temporary, found, size, durable, purpose)
        return found, size

    def move(
        self, source: Path, digest: str, size: int, durable: bool = True, purpose: Purpose = Purpose.OBJECT
    ) -> None:
        """Put a file by moving it, without reading it: its writer vouches for the digest."""
        if not self.rename(source, digest, size, durable, purpose):
            self.copy(source, digest, durable, purpose)
            source.unlink()

    def rename(
        self, source: Path, digest: str, size: int, durable: bool = True, purpose: Purpose = Purpose.OBJECT
    ) -> bool:
        """As `move`, but False, with nothing done, for a file of another file system. Takes microseconds where it need
        not be durable."""
        with self._no_room_in_words():
            if source.stat().st_size != size:
                raise PoolRefused(f"{source} has not the size of its blob: it was cut, or is still written.", "invalid")
            if self._durable and durable and not self.path(digest).exists():
                _sync_file(source)
            try:
                self._place(source, digest, size, durable, purpose)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                return False
        return True

    def sync(self, digest: str) -> None:
        """From now on the blob survives a loss of power, though it was put with durable=False. One that is gone is
        left to whoever asks for it."""
        if self._durable:
            path = self.path(digest)
            with contextlib.suppress(FileNotFoundError):
                _sync_file(path)
                _sync_folder(path.parent)

    def new_incoming(self) -> Path:
        """A path for a file that will be moved in."""
        return self.folder / INCOMING / secrets.token_hex(12)

    # ------------------------------------------------------------ inside

    def _place(self, temporary: Path, digest: str, size: int, durable: bool, purpose: Purpose) -> None:
        target = self.path(digest)
        if purpose is Purpose.OBJECT:
            with contextlib.suppress(FileNotFoundError):
                keep(target)
        if self._renew(target, size, 0.0):
            temporary.unlink()
            if durable:
                self.sync(digest)  # it may have been put by somebody who did not need that
            return
        if purpose is Purpose.OBJECT:
            keep(temporary)
        try:
            os.replace(temporary, target)
        except FileNotFoundError:
            target.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(temporary, target)
        except PermissionError:
            # Windows does not replace a file that is mapped; then it is there, and the same.
            if not self._renew(target, size, 0.0):
                raise
            temporary.unlink()
        if self._durable and durable:
            _sync_folder(target.parent)

    def _renew(self, path: Path, size: int, after_s: float) -> bool:
        """True if the blob is there. The garbage collection moves a blob aside before it looks at its age a last
        time, so a blob that could be renewed stays."""
        try:
            found = path.stat()
            if found.st_size != size:
                return False
            if not after_s or time.time() - found.st_mtime >= after_s:
                os.utime(path)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[Path]:
        temporary = self.new_incoming()
        try:
            with self._no_room_in_words():
                yield temporary
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    @contextlib.contextmanager
    def _no_room_in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in NO_ROOM:
                raise no_room(self.folder) from error
            raise


def no_room(folder: Path, more: str = "") -> PoolRefused:
    """The error for a full disk."""
    return PoolRefused(
        f"the disk under {folder} is full, so nothing more can be put there{more}. Free some room and run again.",
        "store_full",
    )


def write_all(descriptor: int, data: Buffer) -> None:
    """Write all of it, however many calls it takes."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(descriptor, view[:_CHUNK_BYTES]) :]


async def to_the_end(function: Callable[..., _T], *arguments: object) -> _T:
    """Run it in a thread. A cancellation waits for its end: the thread may be using a file that is closed next."""
    task = asyncio.create_task(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@contextlib.contextmanager
def _created(path: Path, durable: bool) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hasher(size: int) -> blake3.blake3:
    """Threads help with much only."""
    return blake3.blake3(max_threads=blake3.blake3.AUTO if size > _PARALLEL_BYTES else 1)


def _hash_and_write(descriptor: int, views: list[memoryview], size: int) -> Digest:
    hasher = _hasher(size)
    for view in views:
        hasher.update(view)
        write_all(descriptor, view)
    return Digest(hasher.hexdigest())


def _hash_beside_writing(descriptor: int, views: list[memoryview]) -> Digest:
    hasher = blake3.blake3()

    def hash_all() -> None:
        for view in views:
            hasher.update(view)

    thread = threading.Thread(target=hash_all, name="fallow-hash")
    thread.start()
    try:
        for view in views:
            write_all(descriptor, view)
    finally:
        thread.join()
    return Digest(hasher.hexdigest())


def _chunks(path: Path) -> Iterator[memoryview]:
    """Reads rather than maps: a mapped file that is cut meanwhile would end the process."""
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield view[:count]


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
