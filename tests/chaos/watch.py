"""Listens to everything that passes between coordinators and nodes, and says what must never happen.

- A lease's token is given out once: never to a second slot.
- Two nodes do not go on with the same tasks (two_holders).
- Once an owner of a newer epoch has spoken for a job, an older one never does again. (What lay in a cut link comes when
  it heals, and nobody heeds it: `late` says when, for whoever knows what was cut.)
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TextIO

import msgspec

from fallow.wire.address import parse_address
from fallow.wire.connection import Connection, connect
from fallow.wire.messages import HandIn, HandInAck, Held, Lease, Revoke, decode
from tests.chaos.two_holders import TwoHolders

ORDER_S = 1.5
"""Messages of two servers may pass each other by this much on a loaded machine."""


class Watch:
    """Runs on a thread of its own until `close`."""

    def __init__(self, address: str, trace: Path | None = None) -> None:
        self.wrong: list[str] = []
        self._trace = trace
        """Where every message is written down, for whoever looks for a cause."""
        self.leases = 0
        self.late: list[tuple[float, str]] = []
        self._two = TwoHolders()
        self._holders: dict[tuple[str, str], tuple[str, int, int]] = {}
        self._epochs: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(address,), name="watch", daemon=True)
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(60)

    def _run(self, address: str) -> None:
        self._loop.run_until_complete(self._listen(address))

    async def _listen(self, address: str) -> None:
        connection = await connect(parse_address(address), "watch", timeout_s=60.0)

        async def heard(raw: Any) -> None:
            message = decode(raw.data)
            node = raw.subject.rpartition(".")[2]
            if isinstance(message, Lease):
                self._lease(node, message)
            if isinstance(message, Revoke):
                self._two.revoke(message, node)
            if isinstance(message, (Lease, HandInAck)):
                self._spoke(message.job_id, message.epoch, type(message).__name__)

        async def sent(raw: Any) -> None:
            message = decode(raw.data)
            if isinstance(message, Lease):
                self._lease(raw.subject.rpartition(".")[2], message)

        def said(message: Any, _reply: str) -> None:
            if isinstance(message, Held):
                self._two.held(message, time.monotonic())
            elif isinstance(message, HandIn):
                self._two.hand_in(message)

        if self._trace is not None:
            await self._write_down(connection, self._trace.open("w", buffering=1))
        await connection._client.subscribe("fw.node.*", cb=heard)
        await connection._client.subscribe("fw.calls.*", cb=sent)
        await connection.subscribe("fw.job.*", said)
        await connection.flush()
        self._ready.set()
        await self._stop.wait()
        await connection.close()

    def _write_down(self, connection: Connection, file: TextIO) -> Coroutine[Any, Any, object]:
        async def heard(raw: Any) -> None:
            now = time.time()
            at = time.strftime("%H:%M:%S", time.localtime(now)) + f"{now % 1:.3f}"[1:]
            try:
                words = repr(decode(raw.data))[:400]
            except msgspec.DecodeError:
                words = f"{len(raw.data)} bytes"
            file.write(f"{at} {raw.subject} {words}\n")

        return connection._client.subscribe("fw.>", cb=heard)

    def _lease(self, node: str, lease: Lease) -> None:
        self.leases += 1
        key = (lease.job_id, repr(lease.token))
        holder = (node, lease.slot, lease.start)
        known = self._holders.setdefault(key, holder)
        if known != holder:
            self.wrong.append(f"token {lease.token} of {lease.job_id} went to {known} and to {holder}")

    def _spoke(self, job_id: str, epoch: int, what: str) -> None:
        now = time.monotonic()
        spoken = self._epochs[job_id]
        if not spoken or epoch > spoken[-1][1]:
            spoken.append((now, epoch))
        elif epoch < spoken[-1][1]:
            since = next(at for at, newer in spoken if newer > epoch)
            if now - since > ORDER_S:
                words = (
                    f"{time.strftime('%H:%M:%S')} {what} of {job_id} under epoch {epoch}, {now - since:.1f} s after a "
                    f"newer owner had spoken (now of epoch {spoken[-1][1]})"
                )
                self.late.append((time.time(), words))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self.wrong += self._two.wrong
