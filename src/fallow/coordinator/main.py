"""A coordinator's process: connects, opens its store, serves until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import platform
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.coordinator.health import HealthServer
from fallow.coordinator.turns import Turns
from fallow.model.errors import FallowError, PoolRefused
from fallow.model.ids import JobId, PoolId, new_id
from fallow.model.job import AccountLimits
from fallow.store.protocol import Store, StoreError, WrongPool
from fallow.wire import subjects
from fallow.wire.address import PoolAddress
from fallow.wire.messages import GetPool, PoolInfo

if TYPE_CHECKING:
    from fallow.coordinator.blob_store import BlobStore
    from fallow.coordinator.context import Context
    from fallow.wire.connection import Connection

log = logging.getLogger(__name__)

GC_THRESHOLDS = (5_000, 80, 20)
"""A coordinator of many nodes lives with many objects and makes no cycles to speak of: looking through them all, which
stops it for tens of milliseconds (0.25 us an object), is to be rare."""
SWITCH_S = 0.0005
"""A thread that wants the interpreter gets it after so long (Python's own: 5 ms). The journal's thread works for
milliseconds, and the event loop, which gives the interpreter up with every message that it writes, would wait for all
of them each time."""
EMBEDDED_HTTP_DELAY_S = 5.0
MEET_S = 1.0


@dataclass(frozen=True)
class CoordinatorOptions:
    """store_url: 'sqlite:///path' or 'postgresql://...'. blobs: 's3://...' or a folder; '': blob_dir. ready: called
    once when clients can be served. identity: a file that remembers which pool this coordinator belongs to. `name` is
    the pool's, `coordinator` this coordinator's among several ('': host and process). health: HOST:PORT to answer
    /healthz and /readyz on. limits: by account, '*' for those that are not named."""

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
    ready: Callable[[], None] | None = None
    blobs: str = ""
    identity: Path | None = None
    limits: Mapping[str, AccountLimits] = field(default_factory=dict)


def run_coordinator(options: CoordinatorOptions) -> int:
    """Serve until SIGTERM or SIGINT (a second one ends at once). Returns the exit code; errors are told on stderr."""
    logging.basicConfig(format="%(asctime)s %(message)s")  # what happened is compared with what others say
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


def _catch_signals(loop: asyncio.AbstractEventLoop, turns: Turns) -> None:
    def asked() -> None:
        if turns.is_over:
            os._exit(1)
        turns.end()

    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, asked)
        except NotImplementedError:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(asked))


async def _serve(options: CoordinatorOptions) -> None:
    from fallow.coordinator.blob_refs import BlobRefs
    from fallow.coordinator.blob_store import open_blob_store
    from fallow.coordinator.context import Context
    from fallow.coordinator.disk_room import DiskRoom
    from fallow.coordinator.housekeeping import Housekeeping
    from fallow.coordinator.journal import OWN, SHARED, Journal
    from fallow.coordinator.load import LoadWatch
    from fallow.coordinator.nodes import NodeRegistry
    from fallow.coordinator.questions import Questions
    from fallow.coordinator.service import Service
    from fallow.coordinator.session import Session
    from fallow.store.open import open_store
    from fallow.wire.connection import PING_OFTEN_S, connect

    loop = asyncio.get_running_loop()
    turns = Turns()
    _catch_signals(loop, turns)
    blobs = open_blob_store(
        options.blobs or str(options.blob_dir), options.address.secret, options.http_host, options.http_port
    )
    store = open_store(options.store_url)
    connecting = asyncio.ensure_future(connect(options.address, "coordinator", 10.0, PING_OFTEN_S))
    try:
        await loop.run_in_executor(None, store.open)
        connection = await connecting
    except BaseException:
        connecting.cancel()
        store.close()
        raise
    try:
        pool_id = _identify(store, options.identity)
        await _meet(connection, pool_id, blobs)
        await loop.run_in_executor(None, blobs.prepare, pool_id)
    except BaseException:
        await connection.close()
        store.close()
        raise
    services: list[Service] = []

    def lost_ownership(job_ids: Sequence[JobId]) -> None:
        for service in services:
            service.ownership.lost(job_ids)

    async def session_lapsed() -> None:
        for service in services:
            await service.ownership.session_lapsed()

    name = options.coordinator or f"{socket.gethostname()}-{os.getpid()}"
    owner = options.owner_name or f"{name}-{secrets.token_hex(4)}"
    session = Session(
        store,
        owner,
        loop,
        session_lapsed,
        shared=not options.store_url.startswith("sqlite"),
        pool_mark=pool_mark(options.address.secret),
        is_own=options.identity is None or options.identity.exists(),
    )
    session.hears = lambda: connection.is_connected
    try:
        await session.start()
    except WrongPool as error:
        raise WrongPool(
            f"{error} To take that pool over for good with this secret, write its id into {options.identity}: {pool_id}"
        ) from error
    if options.identity is not None:
        options.identity.write_text(f"{pool_id}\n")  # only now: a store that is another pool's was refused
    journal = Journal(store, loop, lost_ownership, gathering=SHARED if session.shared else OWN)
    reader = ThreadPoolExecutor(1, "reader")
    context = Context(
        connection=connection,
        store=store,
        journal=journal,
        nodes=NodeRegistry(connection),
        session=session,
        blobs=BlobRefs(),
        owner=owner,
        loop=loop,
        reader=reader,
        questions=Questions(loop, reader),
        load=LoadWatch(connection),
        room=DiskRoom(blobs.room),
        limits=options.limits,
    )
    if not session.shared:
        blobs.is_alone()
        context.is_there = blobs.is_there if blobs.folder else None

    def pool_info() -> PoolInfo:
        from fallow import __version__

        return PoolInfo(
            pool_id=pool_id,
            name=options.name,
            version=__version__,
            python=".".join(platform.python_version_tuple()[:2]),
            blob_dir=blobs.folder,
            blob_nonce=blobs.nonce,
            blobs=blobs.where,
            embedded=options.embedded,
            slots=context.nodes.slot_count() if session.leads else service.peers.pool_slots,
            unix_s=time.time(),
            strangers=context.nodes.has_strangers() if session.leads else service.peers.pool_strangers,
        )

    service = Service(context, pool_info, blobs.sign)
    services.append(service)
    housekeeping = Housekeeping(
        store,
        blobs,
        context.blobs,
        context.room,
        leads=lambda: session.leads,
        is_busy=lambda: bool(service.directory.active),
        is_well=lambda: session.valid and connection.is_connected and journal.trouble is None,
    )
    service.roster.leave = turns.end
    service.on_sooner = turns.hurry
    service.ride = turns.ride
    session.on_sooner = turns.hurry
    health = HealthServer(
        lambda: _not_ready(context), lambda: {"coordinator": name, "pool_id": pool_id, "leads": session.leads}
    )
    if options.health:
        await health.start(options.health)
    await service.start()
    await connection.flush()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_S)
    if options.ready is not None:
        options.ready()
    housekeeping.start()
    starting_http = loop.create_task(_serve_blobs(blobs, options.embedded))
    connection.pace()
    session.pace()
    try:
        while not turns.is_over:
            if not await turns.wait(*service.next_turn()) and not turns.is_over:
                continue
            service.turn()
            housekeeping.turn(loop.time())
            health.ticked()
            connection.keep_alive(press=True)
    finally:
        starting_http.cancel()
        session.go_on()
        await health.stop()
        await service.ownership.drain()
        await housekeeping.stop()
        await blobs.stop()
        await connection.flush()
        await connection.close()
        await loop.run_in_executor(None, journal.close)
        await session.close()
        context.reader.shutdown(wait=False)
        store.close()


def _identify(store: Store, remembered: Path | None) -> PoolId:
    """The pool that the store belongs to: the one that this coordinator belongs to. Raises WrongPool."""
    known = remembered.read_text().strip() if remembered is not None and remembered.exists() else ""
    try:
        return store.pool_id(PoolId(known or new_id("pool", os.urandom)), PoolId(known) if known else None)
    except WrongPool as error:
        raise WrongPool(f"{error} To leave the old pool for good, delete {remembered}.") from error


async def _meet(connection: Connection, pool_id: str, blobs: BlobStore) -> None:
    """Whoever serves on these NATS servers must serve this pool, with the same blobs. Raises PoolRefused in words."""
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
    if isinstance(other, PoolInfo) and other.blobs and not blobs.is_at(other.blobs, other.blob_nonce):
        raise PoolRefused(
            f"the other coordinators of this pool keep its blobs in {other.blobs}, and this one is to keep them in "
            f"{blobs.where}: neither would find the other's. Give it the same --blobs.",
            "another_pool",
        )


def _not_ready(context: Context) -> list[str]:
    reasons = []
    if not context.connection.is_connected:
        reasons.append("not connected to any NATS server")
    if not context.session.valid:
        trouble = context.session.trouble
        reasons.append("its session with the store has lapsed" + (f": {trouble}" if trouble else ""))
    refusal = context.refusal()
    if refusal is not None:
        reasons.append(refusal[1])
    if context.draining:
        reasons.append("it is being taken out")
    return reasons


def pool_mark(secret: str) -> str:
    """Stands for a pool's secret where others may read it."""
    return hashlib.blake2b(secret.encode(), digest_size=8, person=b"fallow pool mark").hexdigest()


async def _serve_blobs(blobs: BlobStore, embedded: bool) -> None:
    """Behind the first answers: the server's library takes a while to import."""
    # Everyone in an embedded pool reads the folder itself; its cold start is not to pay for a server's imports.
    await asyncio.sleep(EMBEDDED_HTTP_DELAY_S if embedded else 0.0)
    await blobs.start()
