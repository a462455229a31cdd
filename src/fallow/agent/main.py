"""The agent as a program: what it is started with, and its life from first to last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from fallow.agent.identity import Claim, claim_home
from fallow.agent.workers import Workers, own_kind
from fallow.model.errors import SettingError
from fallow.model.lending import LendingSettings, OwnerSettings, SandboxSettings, ShareSettings
from fallow.model.tiers import Tier
from fallow.wire.address import PoolAddress

if TYPE_CHECKING:
    from fallow.agent.confined import Confinement
    from fallow.agent.lender import Lender
    from fallow.agent.node import Node

log = logging.getLogger("fallow.agent")

ENDED_AT_ONCE = 130
LEND_AFTER_S = 2.0
MEMORY_SHARE = 0.9
"""Of the machine's memory, for one sandbox."""


class AgentOptions(Struct, frozen=True):
    """What an agent is started with."""

    address: PoolAddress
    name: str
    """A label; several nodes may have the same."""
    slots: int
    """Workers; 0: one for each CPU."""
    home: Path
    """Identity, environments and caches."""
    embedded: bool = False
    ready: Callable[[], None] | None = None
    """Called when the node has said hello to the pool."""
    scratch: Path | None = None
    """What this run alone needs is kept in a folder of its own there; None: under the home."""
    lending: LendingSettings | None = None
    """What the owner of the machine lends, as settings.load_settings read it from the home; None: everything, as on
    the machine of a pool of one's own, where the owner can still ask and pause."""
    own_pool: bool = True
    """Every customer is oneself: plain processes. False: each job in a sandbox, as `sandbox` says."""
    sandbox: SandboxSettings = SandboxSettings()


def run_agent(options: AgentOptions) -> int:
    """Run an agent until SIGTERM or SIGINT; returns the exit code.

    The first signal lets it hand in what is done and say goodbye, a second ends it at once. Raises PoolRefused where
    the pool does not take the token, SettingError where the home cannot be used, and SandboxUnavailable."""
    claim = claim_home(options.home)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(options, claim))
    finally:
        claim.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if os.name != "posix":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(options: AgentOptions, claim: Claim) -> int:
    ended, hurry = asyncio.Event(), asyncio.Event()
    _listen_to_signals(ended, hurry)
    scratch = _scratch(options.scratch or claim.folder)
    try:
        confinement = _confinement(options)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    workers = Workers(scratch, confinement)
    workers.warm(own_kind())
    # The zygote starts on another processor, while this process imports what the rest of the agent needs.
    await asyncio.sleep(0)
    from fallow.agent.link import Link, connect_patiently
    from fallow.agent.node import Node

    try:
        node_id = claim.identify()
    except BaseException:
        await workers.close()
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    node = Node(
        node_id,
        options.name,
        options.slots,
        claim.folder,
        scratch,
        workers,
        options.embedded,
        options.lending,
        options.own_pool,
    )
    lender: Lender | None = None
    later: asyncio.Task[Lender] | None = None
    try:
        if options.lending is not None:
            lender = await _lend(node, claim.folder, options.home, options.lending)
        node.start_workers()
        connecting = asyncio.ensure_future(connect_patiently(options.address, f"agent {node.name} {node.node_id}"))
        waiting = asyncio.ensure_future(ended.wait())
        await asyncio.wait({connecting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not connecting.done():
            connecting.cancel()
            return 0
        link = Link(await connecting, node.on_message)
        if lender is None and not options.embedded:
            later = asyncio.ensure_future(_lend_later(node, claim.folder, options.home))
        await node.serve(link, ended, options.ready)
        await node.drain(hurry)
        return ENDED_AT_ONCE if hurry.is_set() else 0
    finally:
        if later is not None:
            later.cancel()
            with contextlib.suppress(asyncio.CancelledError, SettingError):
                lender = await later
        if lender is not None:
            await lender.close()
        await node.close()


async def _lend(node: Node, folder: Path, home: Path, settings: LendingSettings, watches: bool = True) -> Lender:
    from fallow.agent.lender import Lender
    from fallow.agent.settings import settings_path

    lender = Lender(node, folder, settings_path(home), settings, watches)
    await lender.start()
    return lender


async def _lend_later(node: Node, folder: Path, home: Path) -> Lender:
    """The local node of a pool of one's own: its start waits for nothing of this. Nobody is watched unless a settings
    file says so."""
    await asyncio.sleep(LEND_AFTER_S)
    from fallow.agent.settings import settings_path

    own = LendingSettings(owner=OwnerSettings(watch=False), share=ShareSettings(nice=0, idle_io=False))
    try:
        lender = await _lend(node, folder, home, own, watches=settings_path(home).exists())
    except SettingError as error:
        log.warning("the owner of this machine cannot be heard: %s", error)
        raise
    if lender.watch is not None:
        with contextlib.suppress(SettingError):
            lender.reload()
    return lender


def _confinement(options: AgentOptions) -> Confinement | None:
    """The sandbox of every job; None for plain processes, and then nothing of it is loaded. Raises
    SandboxUnavailable."""
    settings = options.sandbox
    if options.own_pool and settings.backend in ("auto", "process"):
        return None
    from fallow.agent.confined import BUILD_BYTES, Confinement
    from fallow.agent.probe import cpu_count, memory_bytes
    from fallow.sandbox.choose import choose
    from fallow.sandbox.protocol import Limits

    sandbox = choose(settings, options.own_pool)
    if sandbox.tier == Tier.PROCESS:
        return None
    slots = options.slots or cpu_count()
    # Of one sandbox, which holds the workers of one job in all slots.
    share = (options.lending or LendingSettings()).share
    machine = int(memory_bytes() * MEMORY_SHARE)
    limits = Limits(
        memory_bytes=min(machine, share.memory_bytes or machine),
        processes=settings.max_processes * slots,
        cpu_share=share.cpu_share,
        disk_bytes=min(settings.task_disk_bytes * slots, share.disk_bytes or settings.task_disk_bytes * slots),
        nice=share.nice,
        idle_io=share.idle_io,
    )
    return Confinement(
        sandbox,
        limits,
        settings.network and (sandbox.probe().network or sandbox.probe().proxy),
        settings.least,
        settings.index_hosts,
        min(share.disk_bytes or BUILD_BYTES, BUILD_BYTES),
    )


def _listen_to_signals(ended: asyncio.Event, hurry: asyncio.Event) -> None:
    def signalled() -> None:
        if ended.is_set():
            hurry.set()
        ended.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, signalled)
        except (NotImplementedError, RuntimeError):
            # Windows' loop has no such thing.
            with contextlib.suppress(ValueError):
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(signalled))


def _scratch(folder: Path) -> Path:
    """A fresh folder for this run. What earlier runs left is removed: the folder is this agent's alone."""
    root = folder / "scratch"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(prefix="run-", dir=root))
