"""Hand-ins, kept until the owner says that they are durable.

Within a lease they are sent in order, since the last one says that whatever was not handed in is lost. Results that
lie in files go to the blob store first. While the coordinator is away the outbox may grow: what exceeds its memory
is spilled to files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from fallow.model.errors import PoolRefused
from fallow.model.ids import JobId, Token
from fallow.model.parts import Death, HeldLease
from fallow.wire.messages import HandIn, decode, encode

log = logging.getLogger("fallow.agent")

FIRST_REPEAT_S = 2.0
REPEAT_S = 5.0
MEMORY_BYTES = 64 * 1024 * 1024
STORE_RETRY_S = 0.5
STORE_RETRY_MAX_S = 10.0
STORE_FULL_RETRY_MAX_S = 2.0
"""A pool whose disk is full takes nothing new and deletes what was read: there may be room at any moment."""
TAMPERED = "a result was no plain file of the size and digest that its worker had said"

StoreFile = Callable[[JobId, str, str, int], Awaitable[None]]
"""(job, path, digest, size): moves the file into the blob store. Raises when that fails."""

LeaseKey = tuple[JobId, Token]


class NotAResult(Exception):
    """What a file holds is not what the worker said: it is not stored, now or later."""


class Entry:
    """One hand-in that is not acknowledged."""

    __slots__ = ("due_s", "files", "goes_s", "hand_in", "is_sent", "seq", "size", "slot", "spilled", "start", "stop")

    def __init__(self, hand_in: HandIn, files: dict[str, str]) -> None:
        self.hand_in: HandIn | None = hand_in
        self.files = dict(files)
        """Results that are not in the blob store yet."""
        self.seq = hand_in.seq
        self.slot, self.start, self.stop = hand_in.slot, hand_in.start, hand_in.stop
        self.size = 256 + sum(len(page.page.data or b"") for page in hand_in.results)
        self.spilled: Path | None = None
        self.is_sent = False
        self.due_s = 0.0
        self.goes_s = 0.0
        """When the last sending of it leaves: later than it was sent, where the way up is narrow."""

    @property
    def is_stored(self) -> bool:
        return not self.files

    def drop_page(self, digest: str, kind: str, words: str) -> None:
        """Hand in without this page, as if its worker had died so: who does that again and again fails."""
        if self.hand_in is None:
            return
        left = tuple(page for page in self.hand_in.results if page.page.digest != digest)
        deaths = tuple(Death(page.start, kind, words) for page in self.hand_in.results if page.page.digest == digest)
        self.hand_in = msgspec.structs.replace(self.hand_in, results=left, deaths=(*self.hand_in.deaths, *deaths))


class Outbox:
    """`send` publishes a hand-in, and returns the seconds until it goes, where that is not at once; `now` reads a
    monotonic clock in seconds."""

    def __init__(
        self,
        send: Callable[[HandIn], float | None],
        store_file: StoreFile,
        folder: Path,
        now: Callable[[], float],
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._send = send
        self._store_file = store_file
        self._folder = folder
        self._now = now
        self._memory_limit = memory_bytes
        self._leases: dict[LeaseKey, dict[int, Entry]] = {}
        self._memory = 0
        self._spill_count = 0
        self._storing: dict[tuple[LeaseKey, int], asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._leases.values())

    @property
    def memory_bytes(self) -> int:
        """Bytes of results that are kept in memory."""
        return self._memory

    def unsent(self) -> Iterator[HeldLease]:
        """Leases of which nothing is left to run, but a hand-in has yet to go: as beats name them."""
        now = self._now()
        for (job_id, token), entries in self._leases.items():
            for entry in entries.values():
                if not entry.is_sent or entry.goes_s > now:
                    yield HeldLease(job_id, token, entry.slot, entry.start, entry.stop)
                    break

    def is_blocked(self, job_id: JobId, token: Token) -> bool:
        """Say whether a hand-in of this lease would have to wait for an earlier one to be stored."""
        return any(not entry.is_stored for entry in self._leases.get((job_id, token), {}).values())

    def add(self, hand_in: HandIn, files: dict[str, str]) -> None:
        """Take over a hand-in, and the files (by digest) that hold those of its results that have no data."""
        key = (hand_in.job_id, hand_in.token)
        entry = Entry(hand_in, files)
        self._leases.setdefault(key, {})[hand_in.seq] = entry
        self._memory += entry.size
        if files:
            sizes = {str(page.page.digest): page.page.size for page in hand_in.results}
            task = asyncio.ensure_future(self._store(key, entry, sizes))
            self._storing[key, entry.seq] = task
            task.add_done_callback(lambda _task: self._storing.pop((key, entry.seq), None))
        self._advance(key)
        self._spill_excess()

    def acknowledge(self, job_id: JobId, acks: Iterable[tuple[Token, int]]) -> None:
        """These are durable: forget them."""
        for token, seq in acks:
            key = (job_id, (token[0], token[1]))
            entries = self._leases.get(key)
            entry = entries.pop(seq, None) if entries else None
            if entry is not None:
                self._drop(entry)
            if entries is not None and not entries:
                self._leases.pop(key, None)

    def forget_job(self, job_id: JobId) -> None:
        """The job has ended: nobody wants its results."""
        for key in [key for key in self._leases if key[0] == job_id]:
            self._forget(key)

    def forget_lease(self, job_id: JobId, token: Token) -> None:
        self._forget((job_id, (token[0], token[1])))

    def _forget(self, key: LeaseKey) -> None:
        for entry in self._leases.pop(key, {}).values():
            task = self._storing.pop((key, entry.seq), None)
            if task is not None:
                task.cancel()
            self._drop(entry)

    def resend_due(self) -> None:
        """Send again what has waited long enough for an acknowledgement."""
        now = self._now()
        for entries in list(self._leases.values()):
            for entry in entries.values():
                if entry.is_sent and entry.due_s <= now:
                    self._publish(entry, REPEAT_S, again=True)

    def resend_lease(self, job_id: JobId, token: Token) -> None:
        """The owner takes a lease for lost of which all is handed in: it has not heard of that."""
        for entry in self._leases.get((job_id, (token[0], token[1])), {}).values():
            if entry.is_sent:
                self._publish(entry, REPEAT_S, again=True)

    def resend_all(self, only: JobId | None = None) -> None:
        """Send everything (of one job) again: the connection or the owner is a new one."""
        for (job_id, _), entries in list(self._leases.items()):
            for entry in entries.values():
                if entry.is_sent and only in (None, job_id):
                    self._publish(entry, REPEAT_S, again=True)

    async def close(self) -> None:
        for task in list(self._storing.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for key in list(self._leases):
            self._forget(key)

    # ------------------------------------------------------------ inside

    def _advance(self, key: LeaseKey) -> None:
        for entry in self._leases.get(key, {}).values():
            if not entry.is_stored:
                return
            if not entry.is_sent:
                self._publish(entry, FIRST_REPEAT_S, again=False)

    def _publish(self, entry: Entry, repeat_s: float, again: bool) -> None:
        hand_in = entry.hand_in
        if hand_in is None:
            assert entry.spilled is not None
            try:
                hand_in = decode(entry.spilled.read_bytes())
            except (OSError, msgspec.DecodeError) as error:
                # Lost for good: the owner leases the range again when the lease is no longer named in beats.
                log.error("a kept result cannot be read back: %s", error)
                entry.due_s = float("inf")
                return
        if again and (hand_in.pull is not None or hand_in.told):
            # By now the slot may have asked anew; and what the client was told may be lost as this was.
            hand_in = msgspec.structs.replace(hand_in, pull=None, told=False)
        entry.is_sent = True
        wait_s = self._send(hand_in) or 0.0
        entry.goes_s = self._now() + wait_s
        entry.due_s = entry.goes_s + repeat_s

    async def _store(self, key: LeaseKey, entry: Entry, sizes: dict[str, int]) -> None:
        delay_s = STORE_RETRY_S
        for digest, path in list(entry.files.items()):
            while True:
                try:
                    await self._store_file(key[0], path, digest, sizes[digest])
                    break
                except NotAResult as error:
                    log.warning("results of %s are dropped, as if they had never come: %s", key[0], error)
                    entry.drop_page(digest, "worker_lost", TAMPERED)
                    break
                except Exception as error:
                    if isinstance(error, PoolRefused) and error.kind == "too_large":
                        log.warning("results of %s are dropped: %s", key[0], error)
                        entry.drop_page(digest, "no_room", str(error))
                        with contextlib.suppress(OSError):
                            os.unlink(path)
                        break
                    log.warning(
                        "a result of %s cannot be stored yet (%s); it is kept, trying again in %.0f s",
                        key[0],
                        error,
                        delay_s,
                    )
                    is_full = isinstance(error, PoolRefused) and error.kind == "store_full"
                await asyncio.sleep(delay_s * random.uniform(0.7, 1.3))
                delay_s = min(STORE_FULL_RETRY_MAX_S if is_full else STORE_RETRY_MAX_S, delay_s * 2)
            del entry.files[digest]
        self._advance(key)

    def _spill_excess(self) -> None:
        if self._memory <= self._memory_limit:
            return
        for entries in self._leases.values():
            for entry in entries.values():
                if self._memory <= self._memory_limit:
                    return
                if entry.hand_in is not None and entry.is_stored and entry.size > 4096:
                    self._spill(entry)

    def _spill(self, entry: Entry) -> None:
        assert entry.hand_in is not None
        self._spill_count += 1
        path = self._folder / f"handin-{self._spill_count}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(encode(entry.hand_in))
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            log.warning("results stay in memory, since they cannot be written to %s: %s", self._folder, error)
            return
        entry.spilled = path
        entry.hand_in = None
        self._memory -= entry.size

    def _drop(self, entry: Entry) -> None:
        if entry.hand_in is not None:
            self._memory -= entry.size
        if entry.spilled is not None:
            with contextlib.suppress(OSError):
                os.unlink(entry.spilled)
        for path in entry.files.values():
            with contextlib.suppress(OSError):
                os.unlink(path)
