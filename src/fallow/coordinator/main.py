"""A coordinator's process: connects, opens its store, serves until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.coordinator.health import HealthServer
from fallow.model.errors import FallowError, PoolRefused
from fallow.model.ids import JobId, PoolId, new_id
from fallow.store.protocol import Store, StoreError
from fallow.wire import subjects
from fallow.wire.address import PoolAddress, write_private
from fallow.wire.messages import GetPool, PoolInfo

if TYPE_CHECKING:
    from fallow.coordinator.blob_server import BlobServer
    from fallow.coordinator.context import Context
    from fallow.wire.connection import Connection

log = logging.getLogger(__name__)

SWEEP_S = 2.0
MEET_S = 1.0
NONCE_DEAD_S = 60.0
"""A coordinator that lives touches its file in the blob folder every SWEEP_S."""
EMBEDDED_HTTP_DELAY_S = 5.0


@dataclass(frozen=True)
class CoordinatorOptions:
    """store_url: as store.open.open_store takes it. ready: called once when clients can be served.

    `name` is the pool's, `coordinator` this coordinator's among several ('': host and process). `health`: HOST:PORT
    to answer /healthz and /readyz on. `state`: a folder that remembers which pool this coordinator belongs to."""

    address: PoolAddress
    store_url: str
    blob_dir: Path
    name: str
    embedded: bool = False
    http_host: str = "127.0.0.1"
    http_port: int = 0
    owner_name: str = ""
    coordinator: str = ""
    health: str = ""
    state: Path | None = None
    ready: Callable[[], None] | None = None


def run_coordinator(options: CoordinatorOptions) -> int:
    """Serve until SIGTERM or SIGINT (a second one ends at once). Returns the exit code; errors are told on stderr."""
    if sys.platform != "win32":
        import uvloop

        run = uvloop.run
    else:
        run = asyncio.run
    try:
        run(_serve(options))
    except (FallowError, StoreError) as error:
        print(f"fallow: the coordinator cannot start: {error}", file=sys.stderr)
        return 1
    return 0


def _catch_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    def asked() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, asked)
        except NotImplementedError:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(asked))


async def _serve(options: CoordinatorOptions) -> None:
    from fallow.coordinator.blob_refs import BlobRefs
    from fallow.coordinator.context import Context
    from fallow.coordinator.journal import Journal
    from fallow.coordinator.nodes import NodeRegistry
    from fallow.coordinator.service import TICK_S, Service
    from fallow.coordinator.session import Session
    from fallow.store.open import open_store
    from fallow.wire.connection import connect

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    _catch_signals(loop, stop)
    store = open_store(options.store_url)
    connecting = asyncio.ensure_future(connect(options.address, "coordinator", timeout_s=10.0))
    try:
        await loop.run_in_executor(None, store.open)
        connection = await connecting
    except BaseException:
        connecting.cancel()
        store.close()
        raise
    try:
        pool_id = await loop.run_in_executor(None, identify, store, options.state)
        await _meet(connection, pool_id)
        options.blob_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        nonce = _write_nonce(options.blob_dir)
    except BaseException:
        await connection.close()
        store.close()
        raise
    services: list[Service] = []

    def lost_ownership(job_ids: Sequence[JobId]) -> None:
        for service in services:
            service.lost_ownership(job_ids)

    async def session_lapsed() -> None:
        for service in services:
            await service.session_lapsed()

    name = options.coordinator or f"{socket.gethostname()}-{os.getpid()}"
    owner = options.owner_name or f"{name}-{secrets.token_hex(4)}"
    session = Session(store, owner, loop, session_lapsed, shared=not options.store_url.startswith("sqlite"))
    await session.start()
    journal = Journal(store, loop, lost_ownership)
    context = Context(
        connection=connection,
        store=store,
        journal=journal,
        nodes=NodeRegistry(connection),
        session=session,
        blobs=BlobRefs(options.blob_dir),
        owner=owner,
        loop=loop,
        reader=ThreadPoolExecutor(1, "reader"),
    )
    http = _Http(options, pool_id)

    def pool_info() -> PoolInfo:
        from fallow import __version__

        return PoolInfo(
            pool_id=pool_id,
            name=options.name,
            version=__version__,
            python=".".join(platform.python_version_tuple()[:2]),
            blob_dir=str(options.blob_dir.resolve()),
            blob_nonce=nonce,
            embedded=options.embedded,
            slots=context.nodes.slot_count() if session.leads else service.peers.pool_slots,
            unix_s=time.time(),
        )

    service = Service(context, pool_info, http.sign)
    services.append(service)
    service.roster.leave = stop.set
    health = HealthServer(
        lambda: _not_ready(context), lambda: {"coordinator": name, "pool_id": pool_id, "leads": session.leads}
    )
    if options.health:
        await health.start(options.health)
    await service.start()
    await connection.flush()
    if options.ready is not None:
        options.ready()
    sweeping_at = loop.time() + SWEEP_S
    starting_http = loop.create_task(http.start())
    try:
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), TICK_S)
            except TimeoutError:
                pass
            service.tick()
            health.ticked()
            if loop.time() >= sweeping_at:
                sweeping_at = loop.time() + SWEEP_S
                _keep_nonce(options.blob_dir, nonce)
                await context.blobs.sweep(loop, context.reader, loop.time())
    finally:
        starting_http.cancel()
        await health.stop()
        await service.drain()
        await http.stop()
        await connection.flush()
        await connection.close()
        await loop.run_in_executor(None, journal.close)
        await session.close()
        context.reader.shutdown(wait=False)
        store.close()
        (options.blob_dir / f".fallow-{nonce}").unlink(missing_ok=True)


def identify(store: Store, state: Path | None) -> PoolId:
    """The store's pool, which must be the one that this coordinator has served before. Raises StoreError in words."""
    path = state / "pool-id" if state is not None else None
    known = path.read_text().strip() if path is not None and path.exists() else ""
    pool_id = store.pool_id(PoolId(new_id("pool", os.urandom)), PoolId(known) if known else None)
    if path is not None and not known:
        write_private(path, pool_id + "\n")
    return pool_id


async def _meet(connection: Connection, pool_id: str) -> None:
    """Whoever serves on these NATS servers must serve this pool. Raises PoolRefused in words."""
    try:
        other = await connection.request(subjects.POOL, GetPool(), MEET_S)
    except TimeoutError:
        return
    if isinstance(other, PoolInfo) and other.pool_id != pool_id:
        raise PoolRefused(
            f"the NATS servers serve the pool {other.name!r} ({other.pool_id}) already, and the store belongs to the "
            f"pool {pool_id}. Give this coordinator the store of that pool, or NATS servers of its own.",
            "another_pool",
        )


def _not_ready(context: Context) -> list[str]:
    reasons = []
    if not context.connection.is_connected:
        reasons.append("not connected to any NATS server")
    if not context.session.valid:
        reasons.append("its session with the store has lapsed")
    refusal = context.journal.refusal
    if refusal is not None:
        reasons.append(refusal[1])
    if context.draining:
        reasons.append("it is being taken out")
    return reasons


def _write_nonce(blob_dir: Path) -> str:
    """A file that shows a client that it sees the same file system; those of dead coordinators go."""
    for old in blob_dir.glob(".fallow-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > NONCE_DEAD_S:
                old.unlink()
    nonce = secrets.token_hex(16)
    descriptor = os.open(blob_dir / f".fallow-{nonce}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, nonce.encode())
    os.close(descriptor)
    return nonce


def _keep_nonce(blob_dir: Path, nonce: str) -> None:
    """Say that this coordinator lives, to others that share the folder."""
    with contextlib.suppress(OSError):
        os.utime(blob_dir / f".fallow-{nonce}")


class _Http:
    """The blob server, started behind the first answers: its library takes a while to import."""

    def __init__(self, options: CoordinatorOptions, pool_id: str) -> None:
        self._options = options
        self._server: BlobServer | None = None

    async def start(self) -> None:
        # Everyone in an embedded pool reads the folder itself; its cold start is not to pay for a server's imports.
        await asyncio.sleep(EMBEDDED_HTTP_DELAY_S if self._options.embedded else 0.0)
        from fallow.coordinator.blob_server import BlobServer

        server = BlobServer(self._options.blob_dir, self._options.address.secret)
        try:
            await server.start(self._options.http_host, self._options.http_port)
        except OSError as error:
            log.error("the blob server cannot listen on %s: %s", self._options.http_host, error)
            return
        self._server = server

    def sign(self, method: str, digest: str, size: int) -> str | None:
        if self._server is None:
            return None
        return str(self._server.sign(method, digest, size, time.time()))

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
