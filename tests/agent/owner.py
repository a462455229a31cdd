"""A NATS server, an agent as a process of its own, and the owner of jobs that the tests play over the real wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from fallow.model.ids import ClientId, Digest, JobId, NodeId, Token
from fallow.model.job import Blob, EnvSpec, JobKind, JobSpec, Resources
from fallow.model.lending import LendingSettings
from fallow.model.parts import HeldLease, InputPage
from fallow.wire import subjects
from fallow.wire.address import PoolAddress
from fallow.wire.code import dump_function
from fallow.wire.connection import Connection, connect
from fallow.wire.messages import (
    Assign,
    AssignRefused,
    Beat,
    BeatAck,
    Bye,
    Done,
    GetPool,
    HandIn,
    HandInAck,
    Held,
    Lease,
    NodeLog,
    PoolInfo,
    Pull,
    Revoke,
    SaveCheckpoint,
    TakeBack,
    Unpull,
)
from fallow.wire.page import decode_page, encode_inputs

T = TypeVar("T")

DEADLINE_S = 60.0
SECRET = "test-secret"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def nats_program() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "nats-server is not installed"
    return found


class NatsServer:
    """Can be killed and started again on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> PoolAddress:
        return PoolAddress((f"127.0.0.1:{self.port}",), SECRET)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [nats_program(), "-a", "127.0.0.1", "-p", str(self.port), "--auth", SECRET],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                if probe.recv(4):
                    return
            time.sleep(0.01)
        raise AssertionError("nats-server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def nats_server() -> Iterator[NatsServer]:
    server = NatsServer()
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Agent:
    """`run_agent` in a process."""

    def __init__(
        self,
        address: PoolAddress,
        home: Path,
        slots: int,
        name: str = "node",
        lending: LendingSettings | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """lending: what its owner's settings would say. environment: on top of the tests' own."""
        code = (
            "import sys, msgspec; from fallow.model.lending import LendingSettings;"
            "lending = msgspec.json.decode(sys.argv[3], type=LendingSettings | None);"
            "import logging; logging.basicConfig(level=logging.INFO);"
            "from pathlib import Path; from fallow.agent.main import AgentOptions, run_agent;"
            "from fallow.wire.address import parse_address;"
            f"sys.exit(run_agent(AgentOptions(parse_address(sys.argv[1]), {name!r}, {slots}, Path(sys.argv[2]),"
            "lending=lending)))"
        )
        self.home = home
        self.log = home.with_name(f"{home.name}-{name}.log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(address), str(home), msgspec.json.encode(lending)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )

    def descendants(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def end(self) -> int:
        """SIGTERM, and wait; whatever it started must be gone as well."""
        children = self.descendants()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE_S)
        _, alive = psutil.wait_procs(children, DEADLINE_S)
        assert not alive, f"left behind: {alive}"
        return code

    def destroy(self) -> None:
        children = self.descendants()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


class Owner:
    """Collects what agents say, and says what a coordinator would. `acknowledges`: beats and hand-ins."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.beats: list[Beat] = []
        self.held: tuple[HeldLease, ...] = ()
        """What the last Held named."""
        self.byes: list[Bye] = []
        self.pulls: list[Pull] = []
        self.unpulls: list[Unpull] = []
        self.hand_ins: list[HandIn] = []
        """Each (token, seq) once."""
        self.raw_hand_ins: list[HandIn] = []
        self.refusals: list[AssignRefused] = []
        self.logs: list[NodeLog] = []
        self.states: dict[int, Blob] = {}
        """What tasks saved last."""
        self.acknowledges = True
        self.answers_beats = True
        self.pool = PoolInfo("pool-aaaaaa", "test", "0", "3.11")
        self.assign_seq = 0
        self.epoch = 1

    async def start(self) -> Owner:
        await self.connection.subscribe(subjects.BEAT, self._on_beat)
        await self.connection.subscribe(subjects.POOL, self._on_pool)
        await self.connection.subscribe("fw.job.*", self._on_job)
        await self.connection.subscribe(subjects.LOGS_ALL, lambda message, _: self.logs.append(message))
        await self.connection.flush()
        return self

    def _on_beat(self, message: Any, _reply: str) -> None:
        if isinstance(message, Bye):
            self.byes.append(message)
            return
        self.beats.append(message)
        if self.answers_beats:
            known = any(beat.spec is not None and beat.session == message.session for beat in self.beats)
            self.connection.send(
                subjects.node(message.node_id), BeatAck(message.seq, want_spec=not known, epoch=self.epoch)
            )

    def _on_pool(self, message: Any, reply: str) -> None:
        if isinstance(message, GetPool):
            self.connection.send(reply, self.pool)

    def _on_job(self, message: Any, reply: str) -> None:
        match message:
            case Held():
                self.held = message.leases
            case Pull():
                self.pulls.append(message)
            case Unpull():
                self.unpulls.append(message)
            case AssignRefused():
                self.refusals.append(message)
            case HandIn():
                self.raw_hand_ins.append(message)
                if not any(seen.token == message.token and seen.seq == message.seq for seen in self.hand_ins):
                    self.hand_ins.append(message)
                if message.pull is not None:
                    self.pulls.append(message.pull)
                if self.acknowledges:
                    self.acknowledge(message)
            case SaveCheckpoint():
                self.states[message.index] = message.state
                self.connection.send(reply, Done(self.epoch))
            case _ if reply:
                self.connection.send(reply, self.pool)

    # ------------------------------------------------------------ orders

    def acknowledge(self, hand_in: HandIn) -> None:
        ack = HandInAck(hand_in.job_id, self.epoch, ((hand_in.token, hand_in.seq),))
        self.connection.send(subjects.node(hand_in.node_id), ack)

    def assign(self, node: NodeId, slot: int, spec: JobSpec | None) -> None:
        self.assign_seq += 1
        self.connection.send(subjects.node(node), Assign(slot, self.assign_seq, self.epoch, spec))

    def lease(
        self, pull: Pull, token: Token, items: list[Any] | range, start: int = 0, subject: str = "", **more: Any
    ) -> Lease:
        """Answer a pull with a lease of these items, in one page."""
        data = b"".join(encode_inputs(items))
        page = InputPage(start, start + len(items), Blob(Digest("0" * 64), len(data), data))
        message = Lease(
            job_id=pull.job_id,
            epoch=self.epoch,
            token=token,
            slot=pull.slot,
            pull_seq=pull.seq,
            start=start,
            stop=start + len(items),
            budget_s=more.pop("budget_s", 30.0),
            pages=(page,),
            **more,
        )
        self.connection.send(subject or subjects.node(pull.node_id), message)
        return message

    def take_back(self, lease: Lease, node: NodeId, share: float) -> None:
        self.connection.send(subjects.node(node), TakeBack(lease.job_id, self.epoch, lease.token, lease.slot, share))

    def revoke(self, job_id: JobId, node: NodeId, *tokens: Token) -> None:
        self.connection.send(subjects.node(node), Revoke(job_id, self.epoch, tokens, "cancelled"))

    # ------------------------------------------------------------ waiting

    async def until(self, what: str, condition: Callable[[], T | None], within_s: float = DEADLINE_S) -> T:
        deadline = time.monotonic() + within_s
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}"
            await asyncio.sleep(0.005)

    async def node(self, count: int = 1) -> NodeId:
        """Id of the node that said hello."""
        await self.until("a hello", lambda: len({beat.node_id for beat in self.beats if beat.spec}) >= count)
        return self.beats[0].node_id

    async def pull(self, slot: int = 0, idle: bool | None = True, job_id: JobId | None = None) -> Pull:
        """The newest pull of the slot, once there is one of that sort. It counts as answered then."""

        def newest() -> Pull | None:
            for pull in reversed(self.pulls):
                if pull.slot == slot and (job_id is None or pull.job_id == job_id):
                    return pull if idle is None or pull.idle == idle else None
            return None

        pull = await self.until("a pull", newest)
        self.pulls = [other for other in self.pulls if other.slot != slot]
        return pull

    async def ended(self, token: Token) -> list[HandIn]:
        """All hand-ins of a lease, once it is over."""
        await self.until(f"the end of lease {token}", lambda: any(h.ended for h in self.hand_ins if h.token == token))
        return [hand_in for hand_in in self.hand_ins if hand_in.token == token]


@contextlib.asynccontextmanager
async def owner_of(address: PoolAddress) -> AsyncIterator[Owner]:
    connection = await connect(address, "owner")
    try:
        yield await Owner(connection).start()
    finally:
        await connection.close()


def spec(fn: Callable[..., Any], job: str = "job-aaaaaa", kind: JobKind = JobKind.MAP, **more: Any) -> JobSpec:
    # By value: workers cannot import the tests.
    fn.__module__ = "__main__"
    payload = dump_function(fn, style="map")
    return JobSpec(
        job_id=JobId(job),
        name=fn.__name__,
        kind=kind,
        client_id=ClientId("client-aaaaaa"),
        function=Blob(Digest("f" * 64), len(payload), payload),
        env=more.pop("env", EnvSpec()),
        resources=more.pop("resources", Resources()),
        **more,
    )


def values(hand_ins: list[HandIn]) -> dict[int, object]:
    """Results by task number."""
    found: dict[int, object] = {}
    for hand_in in hand_ins:
        for page in hand_in.results:
            assert page.page.data is not None
            items = decode_page(page.page.data)
            for index in range(page.start, page.stop):
                found[index] = items[index - page.page_start]
    return found


def given_back(hand_ins: list[HandIn]) -> set[int]:
    return {index for hand_in in hand_ins for start, stop in hand_in.give_back for index in range(start, stop)}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
