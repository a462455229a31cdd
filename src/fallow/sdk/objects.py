"""Large objects and files: shipped to the pool once, handed to any number of tasks, mapped rather than copied.

    table = fallow.put(big_array)
    f.map(range(1000), kwargs={"table": table})      # each task gets the array itself
    f.map([fallow.File("model.bin"), ...])           # each task gets the path of a file on its node

Both work wherever a task can get at an object: as an input, inside one, in kwargs, in a variable of the function.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, Generic, TypeVar

from fallow.model.errors import SettingError, UnserialisableInput
from fallow.sdk.client import Client, current_bridge, get_client

T = TypeVar("T")

_LINKS = Path.cwd() / ".fallow-files"
"""In a worker: inside its scratch folder, which it starts in and which is removed with it."""


class Ref(Generic[T]):
    """An object that lies in the pool. In a task it is the object."""

    __slots__ = ("__weakref__", "_local", "digest", "size")

    def __init__(self, digest: str, size: int, local: Any = None) -> None:
        self.digest = digest
        self.size = size
        self._local = local

    def get(self) -> T:
        """The object, here."""
        if self._local is None:
            self._local = (_resolve_here(self.digest, self.size),)
        value: T = self._local[0]
        return value

    def __reduce__(self) -> Any:
        return _resolve, (self.digest, self.size)

    def __repr__(self) -> str:
        return f"<fallow.Ref {self.digest[:12]} {self.size:,} bytes>"


def put(obj: T) -> Ref[T]:
    """Ship an object to the pool, once. Raises UnserialisableInput."""
    from fallow.model.job import Blob
    from fallow.wire.page import encode_inputs

    client = get_client()
    try:
        segments = encode_inputs([obj])
    except UnserialisableInput as error:
        text = str(error).replace("input 0", "the object", 1)
        raise UnserialisableInput(text, error.where.replace("input 0", "the object", 1)) from None
    client.ready()
    blob: Blob = client.submit_blocking(_put_always(client, segments))
    return Ref(blob.digest, blob.size, (obj,))


async def _put_always(client: Client, segments: list[Any]) -> Any:
    """Into the blob store, however small: a task has nothing but the digest."""
    from fallow.sdk.room import put_waiting
    from fallow.wire.blob_files import no_room_in_words

    blob = await put_waiting(client, lambda: client.blobs.put_segments(segments, durable=False))
    client.unsynced.add(blob.digest)
    if blob.data is None:
        return blob
    with no_room_in_words(Path(tempfile.gettempdir())):
        handle, name = tempfile.mkstemp(prefix="fallow-put-")
    try:
        with no_room_in_words(Path(name).parent), os.fdopen(handle, "wb") as file:
            file.write(blob.data)
        return await put_waiting(client, lambda: client.blobs.put_file(Path(name), durable=False))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _resolve(digest: str, size: int) -> Any:
    """Unpickling a Ref: in a task the object, elsewhere the Ref."""
    if current_bridge() is None:
        return Ref(digest, size)
    from fallow.worker.objects import get_object

    return get_object(digest, size)


def _resolve_here(digest: str, size: int) -> Any:
    from fallow.model.ids import Digest
    from fallow.model.job import Blob
    from fallow.wire.page import decode_page

    client = get_client().ready()
    return decode_page(client.submit_blocking(client.blobs.fetch(Blob(Digest(digest), size))))[0]


class File:
    """A file of this machine; in a task it is the path (a pathlib.Path) of a read-only file with the same name and
    contents on the node. It is shipped when it is first sent, and once however many tasks use it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            why = "that is a folder; give a file" if self.path.is_dir() else "there is no such file"
            raise SettingError(f"fallow.File({str(path)!r}): {why}.")
        self._lock = threading.Lock()
        self._shipped: tuple[Client, str, int, tuple[int, int]] | None = None

    def upload(self) -> File:
        """Ship it now. Raises PoolError; SettingError when the file is gone."""
        self._ship()
        return self

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"fallow.File({str(self.path)!r})"

    def __reduce__(self) -> Any:
        digest, size = self._ship()
        return _resolve_file, (digest, size, self.path.name)

    def _ship(self) -> tuple[str, int]:
        with self._lock:
            try:
                stat = self.path.stat()
            except OSError as error:
                raise SettingError(f"{self.path} cannot be read: {error.strerror}.") from None
            mark = (stat.st_mtime_ns, stat.st_size)
            client = get_client()
            if self._shipped is None or self._shipped[0] is not client or self._shipped[3] != mark:
                if threading.current_thread() is client.thread.thread:
                    raise SettingError(
                        f"{self!r} lies deep inside an argument: call its .upload() before submitting it."
                    )
                client.ready()
                from fallow.sdk.room import put_waiting

                blob = client.submit_blocking(
                    put_waiting(client, lambda: client.blobs.put_file(self.path, durable=False))
                )
                client.unsynced.add(blob.digest)
                self._shipped = (client, blob.digest, blob.size, mark)
            return self._shipped[1], self._shipped[2]


def _resolve_file(digest: str, size: int, name: str) -> Any:
    """Unpickling a File in a task: a path that ends in the file's own name."""
    from fallow.worker.nested import blob_path

    if current_bridge() is None:
        raise RuntimeError(f"the file {name!r} can be opened in a task only")
    stored = Path(blob_path(digest, size))
    folder = _LINKS / digest[:20]
    link = folder / name
    if link.exists() and os.path.realpath(link) == os.path.realpath(stored):
        return link
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = folder / f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(stored)
    os.replace(temporary, link)
    return link
