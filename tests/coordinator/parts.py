"""A real coordinator over a real NATS server and SQLite, with an agent and a client that a test moves by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fallow.cli.nats_server import find_server, free_port, server_config, wait_until_serving
from fallow.model.ids import ClientId, Digest, JobId, NodeId, new_id
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.node import NodeSpec
from fallow.wire import subjects
from fallow.wire.address import PoolAddress
from fallow.wire.connection import Connection, connect
from fallow.wire.messages import Beat, HandIn, HandInAck, Held, InputPage, Lease, Msg, Pull, SlotState

M = TypeVar("M", bound=Msg)
DEADLINE_S = 60.0
AGAIN_S = 2.0


class NatsProcess:
    """A nats-server of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port("127.0.0.1")
        self.address = PoolAddress((f"127.0.0.1:{self.port}",), "s3cret")
        config = folder / "nats.conf"
        config.write_text(server_config("127.0.0.1", self.port, "s3cret"))
        self._command = [find_server(), "-c", str(config)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert wait_until_serving("127.0.0.1", self.port, lambda: self.process.poll() is None, 30.0)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class CoordinatorProcess:
    """`run_coordinator` in a process of its own, so that it can be killed."""

    def __init__(self, address: PoolAddress, folder: Path, store_url: str = "", owner: str = "") -> None:
        self.owner = owner
        store_url = store_url or f"sqlite:///{folder}/store.sqlite"
        code = (
            "import sys; from pathlib import Path; from fallow.wire.address import parse_address;"
            "from fallow.coordinator.main import CoordinatorOptions, run_coordinator;"
            f"sys.exit(run_coordinator(CoordinatorOptions(parse_address({str(address)!r}),"
            f"{store_url!r}, Path('{folder}/blobs'), 'test', owner_name={owner!r},"
            "ready=lambda: print('ready', flush=True))))"
        )
        self._command = [sys.executable, "-c", code]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


class Inbox:
    """Messages of one subject, in order of arrival."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._arrived = asyncio.Event()

    def __call__(self, message: Any, reply: str) -> None:
        self.messages.append(message)
        self._arrived.set()

    async def take(
        self,
        kind: type[M],
        where: Callable[[M], bool] = lambda _: True,
        again: Callable[[], None] | None = None,
    ) -> M:
        """The first message of that kind (it is removed); waits for it. `again` is called every few seconds meanwhile:
        everything on the wire may be lost, and a coordinator that was starved past its session hears nothing."""
        again_at = asyncio.get_running_loop().time() + AGAIN_S
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for at, message in enumerate(self.messages):
                    if isinstance(message, kind) and where(message):
                        del self.messages[at]
                        return message
                self._arrived.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), AGAIN_S)
                if again is not None and asyncio.get_running_loop().time() >= again_at:
                    again_at += AGAIN_S
                    again()


class HandAgent:
    """An agent that does what the test says."""

    def __init__(self, connection: Connection, name: str, slots: int = 1) -> None:
        self.connection = connection
        self.node_id = NodeId(os.urandom(8).hex())
        self.session = os.urandom(4).hex()
        self.slots = slots
        self.inbox = Inbox()
        self.spec = NodeSpec(
            self.node_id, name, slots, 8, 1 << 34, 1 << 40, "linux", (f"3.{sys.version_info[1]}",), "0.1"
        )
        self.seq = 0
        self.interval_s = 1.0
        """How often it says that it beats."""
        self.held: list[Any] = []
        self.jobs: dict[int, JobId | None] = {}
        self.works_for: set[JobId] = set()
        self.handed_in: list[HandIn] = []
        self.had: set[tuple[JobId, Any]] = set()
        self.durable: set[tuple[JobId, Any]] = set()
        """Whose hand-ins are: leases take that along."""
        self._durable_news = asyncio.Event()

    async def start(self) -> None:
        await self.connection.subscribe(subjects.node(self.node_id), self._receive)
        self.beat(self.spec)

    def beat(self, spec: NodeSpec | None = None) -> None:
        self.seq += 1
        slots = tuple(SlotState(slot, self.jobs.get(slot)) for slot in range(self.slots))
        beat = Beat(self.node_id, self.session, self.seq, slots, len(self.held), spec=spec, interval_s=self.interval_s)
        self.connection.send(subjects.BEAT, beat)
        for job_id in {lease.job_id for lease in self.held} | self.works_for:
            leases = tuple(lease for lease in self.held if lease.job_id == job_id)
            self.send(Held(job_id, self.node_id, self.spec.name, self.session, leases))

    def _receive(self, message: Any, reply: str) -> None:
        """A lease is new once, as for every agent."""
        if isinstance(message, Lease | HandInAck):
            self.durable |= {(message.job_id, token) for token, _ in message.acks}
            self._durable_news.set()
        if isinstance(message, Lease):
            if (message.job_id, message.token) in self.had:
                return
            self.had.add((message.job_id, message.token))
        self.inbox(message, reply)

    def send(self, message: Any) -> None:
        if isinstance(message, HandIn):
            self.handed_in.append(message)
        self.connection.send(subjects.job(message.job_id), message)

    def _pull(self, job_id: JobId, slot: int, idle: bool) -> None:
        self.seq += 1
        self.works_for.add(job_id)
        self.send(Held(job_id, self.node_id, self.spec.name, self.session, tuple(self.held)))
        self.send(Pull(job_id, self.node_id, slot, self.seq, idle))

    def ask(self, job_id: JobId, slot: int = 0) -> None:
        """For a lease, without waiting for it."""
        self._pull(job_id, slot, True)

    async def lease(self, job_id: JobId, slot: int = 0, idle: bool = True) -> Lease:
        self._pull(job_id, slot, idle)
        return await self.inbox.take(Lease, again=lambda: self._pull(job_id, slot, idle))

    async def all_durable(self, handed_in: list[HandIn]) -> None:
        """Wait until these are, however it is told; those that are not are handed in again."""
        again_at = asyncio.get_running_loop().time() + AGAIN_S
        async with asyncio.timeout(DEADLINE_S):
            while missing := [part for part in handed_in if (part.job_id, part.token) not in self.durable]:
                self._durable_news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._durable_news.wait(), AGAIN_S)
                if asyncio.get_running_loop().time() >= again_at:
                    again_at += AGAIN_S
                    for part in missing:
                        self.send(part)

    async def acknowledged(self, lease: Lease | None = None) -> HandInAck:
        """The acknowledgement of what was handed in last (of that lease); handed in again until it comes."""
        last = self.handed_in[-1]
        return await self.inbox.take(
            HandInAck,
            lambda ack: lease is None or any(token == lease.token for token, _ in ack.acks),
            again=lambda: self.send(last),
        )


def page(start: int, stop: int, data: bytes = b"page") -> InputPage:
    return InputPage(start, stop, Blob(Digest("ab" * 32), len(data), data))


def spec(client: ClientId, kind: JobKind = JobKind.MAP, **options: Any) -> JobSpec:
    return JobSpec(
        job_id=JobId(new_id("job", os.urandom)),
        name="square",
        kind=kind,
        client_id=client,
        function=Blob(Digest("cd" * 32), 3, b"fun"),
        **options,
    )


async def connected(address: PoolAddress, name: str) -> Connection:
    return await connect(address, name)
