"""`fallow join`, `connect` and `disconnect`: this machine works for a pool, or uses one."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from fallow.cli.client import ask_pool
from fallow.cli.full_disk import full_disk_in_words
from fallow.cli.join_address import address_from
from fallow.model.errors import PoolUnreachable
from fallow.wire.address import (
    PoolAddress,
    connected_address,
    home_dir,
    parse_address,
    remember_connection,
    running_pool,
)
from fallow.wire.messages import PoolInfo

if TYPE_CHECKING:
    from fallow.cli.join_show import Show

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 15.0
SAY_AFTER_S = 2.0
"""A question that has not been answered for so long is spoken of: servers without a coordinator keep one waiting."""
SERVER = "nats-server"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

DEDICATED = ["owner.watch=false", "owner.busy_cpu=100 %", "owner.resume_cpu=100 %"]
"""Settings of a machine that is the pool's alone."""


class JoinOptions(Struct, frozen=True):
    """What `fallow join` was asked for."""

    address: str
    name: str = ""
    slots: int = 0
    from_file: str = ""
    dry_run: bool = False
    as_json: bool = False
    own_pool: bool | None = None
    """None: what the address suggests."""
    dedicated: bool = False


def run_join(wanted: JoinOptions) -> int:
    """Show what is here and what will be lent, then run the agent in the foreground until it is told to end. Raises
    PoolAddressError, PoolRefused and SettingError in words; a pool that is away is waited for."""
    address = parse_address(address_from(wanted.address, wanted.from_file))
    name = wanted.name or socket.gethostname()
    home = home_dir()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    agent_home = home / "agent"
    from fallow.agent.settings import change_settings, load_settings, settings_path, write_defaults

    file = settings_path(agent_home)
    settings = change_settings(file, DEDICATED) if wanted.dedicated and not wanted.dry_run else load_settings(file)
    quiet = wanted.dry_run and wanted.as_json
    pool = _wait_for_pool(address, quiet)
    own = is_ours(address) if wanted.own_pool is None else wanted.own_pool
    if wanted.own_pool is None and not own and is_loopback(address) and not quiet:
        print("The pool's server is not yours, though it is at this machine: its jobs run in a sandbox.", flush=True)
    if not wanted.dry_run and write_defaults(file):
        print(f"Wrote the settings, with every default: {file}", flush=True)
    _say_who_lends_already(quiet)
    from fallow.agent.limits.offer import lent_slots
    from fallow.agent.probe import cpu_count

    slots = lent_slots(settings, cpu_count(), wanted.slots)
    show: Show | None = None
    if wanted.dry_run or sys.stdout.isatty():
        from fallow.cli.join_show import Show

        agent_home.mkdir(exist_ok=True, mode=0o700)
        show = Show(settings, agent_home, address, str(file))
        show.look(wanted.slots, own, quiet)
        if wanted.dry_run:
            show.measure(quiet)
            if quiet:
                show.print_json(pool)
            else:
                print("Nothing was started: this was a dry run.")
            return 0
        # The agent need not wait for what takes seconds to measure.
        show.start_measuring()
    from fallow.agent.main import AgentOptions, run_agent

    def ready() -> None:
        print(f"{name!r} works for the pool {pool.name!r} with {_slots(slots)}. Ctrl-C ends it.", flush=True)

    options = AgentOptions(
        address=address,
        name=name,
        slots=slots,
        home=agent_home,
        ready=ready,
        lending=settings,
        own_pool=own,
        sandbox=settings.sandbox,
    )
    try:
        with full_disk_in_words(agent_home):
            code = run_agent(options)
    finally:
        if show is not None:
            show.stop_measuring()
    print(f"{name!r} has left the pool {pool.name!r}.", flush=True)
    return code


def _say_who_lends_already(quiet: bool) -> None:
    """A service, or another terminal: allowed, and seldom meant."""
    from fallow.cli.node_client import running_agents

    if (others := len(running_agents())) and not quiet:
        words = "another agent of yours lends" if others == 1 else f"{others} agents of yours lend"
        print(
            f"fallow: {words} this machine already (`fallow node status`), and each lends all that the settings say.",
            file=sys.stderr,
            flush=True,
        )


def _slots(count: int) -> str:
    return f"{count or 'no'} slot{'' if count == 1 else 's'}"


def is_loopback(address: PoolAddress) -> bool:
    """Whether all of the pool's servers are reached at this machine."""
    return all(server.rpartition(":")[0].strip("[]") in LOOPBACK for server in address.servers)


def is_ours(address: PoolAddress) -> bool:
    """Whether all of the pool's servers are programs of this very user, on this machine: a pool of another account, or
    one that a tunnel leads to, is a stranger's."""
    if not is_loopback(address):
        return False
    import psutil

    user = psutil.Process().username()
    ports = set()
    for process in psutil.process_iter(["name", "username"]):
        if process.info["username"] == user and (process.info["name"] or "").startswith(SERVER):
            with contextlib.suppress(psutil.Error):
                ports |= {found.laddr.port for found in process.net_connections("tcp") if found.status == "LISTEN"}
    return all(int(server.rpartition(":")[2]) in ports for server in address.servers)


def _wait_for_pool(address: PoolAddress, quiet: bool = False) -> PoolInfo:
    """Ask the pool who it is, again and again while nobody answers. A refusal is raised at once. `quiet`: standard
    output is somebody else's."""

    def say(words: str) -> None:
        print(words, file=sys.stderr if quiet else sys.stdout, flush=True)

    pause_s = FIRST_PAUSE_S
    say(f"Joining the pool at {address.public}...")
    words = f"No answer yet from {address.public}; asking on. Ctrl-C gives up."
    waiting = threading.Timer(SAY_AFTER_S, say, (words,))
    waiting.daemon = True
    waiting.start()
    while True:
        try:
            pool = ask_pool(lambda client: client.pool(), address)
        except PoolUnreachable as error:
            waiting.cancel()
            print(f"fallow: {error} Trying again in {pause_s:.0f} s; Ctrl-C gives up.", file=sys.stderr, flush=True)
            time.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, pause_s * 2)
            continue
        finally:
            waiting.cancel()
        say(f"Found the pool {pool.name!r} ({pool.pool_id}), Fallow {pool.version}, with {_slots(pool.slots)} so far.")
        return pool


def run_connect(text: str) -> int:
    """Check that the pool answers, then remember it; without an address, say which one is remembered."""
    if not text:
        remembered = connected_address()
        if remembered:
            print(f"Scripts of this user run on the pool at {parse_address(remembered).public}.")
        elif running_pool():
            print("No pool is remembered; scripts use the one that `fallow up` runs here.")
        else:
            print("No pool is remembered; a script starts its own. Give an address: fallow connect TOKEN@HOST:PORT")
        return 0
    address = parse_address(text)
    pool = ask_pool(lambda client: client.pool(), address)
    remember_connection(str(address))
    print(f"Connected: scripts of this user now run on the pool {pool.name!r} at {address.public}.")
    if os.environ.get("FALLOW_URL"):
        print("fallow: FALLOW_URL is set and goes before this.", file=sys.stderr)
    return 0


def run_disconnect() -> int:
    """Forget the remembered pool. It is no error if there is none."""
    known = connected_address()
    remember_connection(None)
    print(f"Forgot the pool at {parse_address(known).public}." if known else "No pool was remembered.")
    return 0
