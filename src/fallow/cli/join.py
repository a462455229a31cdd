"""`fallow join`, `connect` and `disconnect`: this machine works for a pool, or uses one."""

from __future__ import annotations

import os
import socket
import sys
import time

from fallow.cli.client import ask_pool
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

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 15.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run_join(text: str, name: str, slots: int, own_pool: bool | None = None) -> int:
    """Run the agent in the foreground until it is told to end. Raises PoolAddressError, PoolRefused and
    SandboxUnavailable in words; a pool that is away is waited for. `own_pool`: None for what the address suggests."""
    address = parse_address(text)
    name = name or socket.gethostname()
    home = home_dir()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = is_loopback(address) if own_pool is None else own_pool
    pool = _wait_for_pool(address)
    from fallow.agent.main import AgentOptions, run_agent

    def ready() -> None:
        count = slots or os.cpu_count() or 1
        words = f"{slots} slots" if slots > 1 else "1 slot" if slots == 1 else f"a slot per CPU ({count})"
        print(f"{name!r} works for the pool {pool.name!r} with {words}. Ctrl-C ends it.", flush=True)

    options = AgentOptions(address=address, name=name, slots=slots, home=home / "agent", ready=ready, own_pool=own)
    code = run_agent(options)
    print(f"{name!r} has left the pool {pool.name!r}.", flush=True)
    return code


def is_loopback(address: PoolAddress) -> bool:
    """Whether all of the pool's servers are on this machine: then whoever uses it is at this machine too."""
    return all(server.rpartition(":")[0].strip("[]") in LOOPBACK for server in address.servers)


def _wait_for_pool(address: PoolAddress) -> PoolInfo:
    """Ask the pool who it is, again and again while nobody answers. A refusal is raised at once."""
    pause_s = FIRST_PAUSE_S
    print(f"Joining the pool at {address.public}...", flush=True)
    while True:
        try:
            pool = ask_pool(lambda client: client.pool(), address)
        except PoolUnreachable as error:
            print(f"fallow: {error} Trying again in {pause_s:.0f} s; Ctrl-C gives up.", file=sys.stderr, flush=True)
            time.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, pause_s * 2)
            continue
        print(
            f"Found the pool {pool.name!r} ({pool.pool_id}), Fallow {pool.version}, {pool.slots} slots so far.",
            flush=True,
        )
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
