"""Answers what workers ask of the node: see WorkerCallbacks.asked for the kinds.

An empty answer says that the thing cannot be had.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fallow.agent.outbox import NotAResult
from fallow.agent.relay import Answer
from fallow.model.errors import PoolRefused
from fallow.model.ids import Token
from fallow.model.job import Blob, Purpose
from fallow.wire import subjects
from fallow.wire.messages import Done, SaveCheckpoint
from fallow.wire.repeats import AGAIN_S

if TYPE_CHECKING:
    from fallow.agent.blob_access import BlobAccess
    from fallow.agent.confined import Confined
    from fallow.agent.lane import Seat

log = logging.getLogger("fallow.agent")

NOTHING = b""
SAVE_TIMEOUT_S = 2.0
SAVE_TRIES = 3
PUT_PATIENCE_S = 20.0
"""How long what a task sends waits for room in the blob store."""
PUT_AGAIN_S = 0.5


class Desk:
    """One for the node. `describe` tells what a nested SDK must know besides its client id. In a folder below `taken`
    lies what was taken out of sandboxes and is not in the store yet."""

    def __init__(self, blobs: BlobAccess, describe: Callable[[], dict[str, str]], taken: Path) -> None:
        self._blobs = blobs
        self._taken = taken / "taken"
        self._serial = 0
        self._results: dict[str, str] = {}
        self._describe = describe
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, seat: Seat, kind: str, body: bytes, answer: Answer) -> None:
        try:
            match kind:
                case "request":
                    seat.relay.request(body, answer)
                case "publish":
                    seat.relay.publish(body)
                    answer(NOTHING)
                case "waiting":
                    waiting = msgspec.msgpack.decode(body, type=bool)
                    answer(msgspec.msgpack.encode(seat.lane.slot.lend(seat.lane, waiting)))
                case "pool":
                    self._start(self._pool(seat, answer), answer)
                case "blob":
                    digest, size = msgspec.msgpack.decode(body, type=tuple[str, int])
                    self._start(self._blob(seat, digest, size, answer), answer)
                case "put":
                    path, digest, size = msgspec.msgpack.decode(body, type=tuple[str, str, int])
                    self._start(self._put(seat, path, digest, size, answer), answer)
                case "checkpoint":
                    saved = msgspec.msgpack.decode(body, type=tuple[Token, int, Blob, str])
                    self._start(self._checkpoint(seat, *saved, answer=answer), answer)
                case _:
                    log.warning("a worker asked for %r, which this agent does not know", kind)
                    answer(NOTHING)
        except msgspec.DecodeError as error:
            log.warning("a worker asked for %r in a way that cannot be read: %s", kind, error)
            answer(NOTHING)

    async def _pool(self, seat: Seat, answer: Answer) -> None:
        client_id = await seat.relay.new_client()
        answer(msgspec.msgpack.encode({**self._describe(), "client_id": client_id}))

    async def _blob(self, seat: Seat, digest: str, size: int, answer: Answer) -> None:
        confined = _confined(seat)
        if confined is None:
            answer(str(await self._blobs.path(digest, size)).encode())
            return
        from fallow.agent.doubts import RESULT_BYTES_MAX, is_digest

        if not is_digest(digest) or not 0 <= size <= RESULT_BYTES_MAX:
            answer(NOTHING)
            return
        path = await self._blobs.path(digest, size)
        answer((await asyncio.to_thread(confined.expose, str(path), digest)).encode())

    async def _put(self, seat: Seat, path: str, digest: str, size: int, answer: Answer) -> None:
        until_s = time.monotonic() + PUT_PATIENCE_S
        while True:
            try:
                await self._store(seat, path, digest, size, Purpose.OBJECT)
                break
            except PoolRefused as error:
                if error.kind != "store_full" or time.monotonic() > until_s:
                    raise
            await asyncio.sleep(PUT_AGAIN_S)
        answer(msgspec.msgpack.encode(True))

    async def _store(self, seat: Seat, path: str, digest: str, size: int, purpose: Purpose) -> None:
        """A file that the worker names: from a sandbox only what lies in its own folder, and holds what it is said
        to."""
        confined = _confined(seat)
        if confined is not None:
            path = await self._take(confined, path, digest, size)
        try:
            await self._blobs.store(path, digest, size, True, purpose)
        finally:
            if confined is not None:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    async def _checkpoint(self, seat: Seat, token: Token, index: int, state: Blob, path: str, answer: Answer) -> None:
        """The owner of the job keeps it: then it is safe, whatever becomes of this node."""
        process, node = seat.process, seat.lane.slot.node
        job_id = process.job_id if process is not None else None
        connection = node.connection
        if process is None or job_id is None or connection is None:
            answer(NOTHING)
            return
        began_s = time.monotonic()
        if path:
            await self._store(seat, path, state.digest, state.size, Purpose.RESULTS)
        if state.data is not None and self._blobs.pace is not None:
            await self._blobs.pace.sent(len(state.data))
        message = SaveCheckpoint(job_id, node.node_id, token, index, state)
        reply = None
        for _ in range(SAVE_TRIES):
            with contextlib.suppress(TimeoutError):
                reply = await connection.request(subjects.job(job_id), message, SAVE_TIMEOUT_S, AGAIN_S)
                break
        if isinstance(reply, Done):
            process.saved_s = began_s
            answer(msgspec.msgpack.encode(True))
        else:
            log.info("the state of task %d of %s was not kept: %s", index, job_id, reply)
            answer(NOTHING)

    async def take_result(self, path: str, digest: str, size: int) -> str:
        """Copy a result file that a sandbox wrote, and remove it there; returns the copy's path. `path`: on the host,
        as Confined.result_path gave it. Raises NotAResult where it is not what it was said to be."""
        from fallow.agent.confined import Tampered, copy_checked, open_folder_of

        if path in self._results:
            return self._results[path]  # it was taken, and could not be stored yet
        name = os.path.basename(path)
        target = self._new_path()

        def copy() -> None:
            folder_fd = open_folder_of(path)
            try:
                copy_checked(folder_fd, name, target, digest, size)
                os.unlink(name, dir_fd=folder_fd)
            finally:
                os.close(folder_fd)

        try:
            await asyncio.to_thread(copy)
        except (Tampered, FileNotFoundError, NotADirectoryError) as error:
            raise NotAResult(str(error)) from None
        self._results[path] = target
        return target

    def stored(self, path: str) -> None:
        """What was taken from there is in the store."""
        self._results.pop(path, None)

    async def _take(self, confined: Confined, path: str, digest: str, size: int) -> str:
        target = self._new_path()
        await asyncio.to_thread(confined.take, path, target, digest, size)
        return target

    def _new_path(self) -> str:
        self._serial += 1
        self._taken.mkdir(parents=True, exist_ok=True, mode=0o700)
        return str(self._taken / str(self._serial))

    def _start(self, work: Coroutine[Any, Any, None], answer: Answer) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                answer(NOTHING)
            elif task.exception() is not None:
                log.warning("a task's request cannot be met: %s", task.exception())
                answer(NOTHING)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)


def _confined(seat: Seat) -> Confined | None:
    """What the sandbox of the seat's worker sees; None for a plain process."""
    process = seat.process
    return process.confined if process is not None else None
