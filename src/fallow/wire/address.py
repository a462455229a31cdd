"""Where a pool is and its secret: parsing addresses, and the 0600 file that a running pool leaves.

A pool's address reads TOKEN@HOST:PORT[,HOST:PORT...]; the token is the pool's secret (NATS token).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from msgspec import Struct

from fallow.model.errors import PoolAddressError

_HOST = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")


class PoolAddress(Struct, frozen=True):
    """servers: 'host:port' of NATS servers; secret: the pool's token."""

    servers: tuple[str, ...]
    secret: str

    def __str__(self) -> str:
        return f"{self.secret}@{','.join(self.servers)}"

    @property
    def urls(self) -> list[str]:
        """For nats-py, without the secret."""
        return [f"nats://{server}" for server in self.servers]

    @property
    def public(self) -> str:
        """To show to people: without the secret."""
        return ",".join(self.servers)


def parse_address(text: str, source: str = "") -> PoolAddress:
    """Read TOKEN@HOST:PORT[,HOST:PORT...], which stood in `source`. Raises PoolAddressError that says what is wrong,
    without the token."""
    where = f"{source}: " if source else ""
    body = text.strip().removeprefix("fallow://")
    secret, at, hosts = body.rpartition("@")
    if not at or not secret:
        raise PoolAddressError(
            f"{where}{text!r} has no token. Expected TOKEN@HOST:PORT, as `fallow up --listen` prints it."
        )
    servers = tuple(host.strip() for host in hosts.split(",") if host.strip())
    for server in servers:
        match = _HOST.match(server)
        if not match or not 0 < int(match[2]) < 65536:
            raise PoolAddressError(f"{where}{server!r} is not HOST:PORT. Expected TOKEN@HOST:PORT.")
    if not servers:
        raise PoolAddressError(f"{where}the address names no host. Expected TOKEN@HOST:PORT.")
    return PoolAddress(servers, secret)


def home_dir() -> Path:
    """FALLOW_HOME, else ~/.fallow."""
    return Path(os.environ.get("FALLOW_HOME") or Path.home() / ".fallow")


class PoolFile(Struct, frozen=True):
    """home_dir()/pool.json while `fallow up` runs."""

    address: str
    pid: int
    pool_id: str
    started: float
    """Start time of the process `pid` as psutil tells it, so that a reused pid is not taken for the pool."""


def write_private(path: Path, text: str) -> None:
    """Write a 0600 file in one step (a reader sees the old or the new one)."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_pool_file(pool: PoolFile) -> None:
    write_private(home_dir() / "pool.json", json.dumps({name: getattr(pool, name) for name in pool.__struct_fields__}))


def remove_pool_file() -> None:
    with contextlib.suppress(FileNotFoundError):
        (home_dir() / "pool.json").unlink()


def running_pool() -> PoolFile | None:
    """The pool that `fallow up` runs on this machine for this user, if it lives."""
    try:
        pool = PoolFile(**json.loads((home_dir() / "pool.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    import psutil

    try:
        alive = abs(psutil.Process(pool.pid).create_time() - pool.started) < 2.0
    except psutil.Error:
        return None
    return pool if alive else None


def connected_address() -> str | None:
    """What `fallow connect` remembered."""
    try:
        return str(json.loads((home_dir() / "connect.json").read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_connection(address: str | None) -> None:
    """Remember an address for scripts of this user, or forget it."""
    path = home_dir() / "connect.json"
    if address is None:
        path.unlink(missing_ok=True)
    else:
        write_private(path, json.dumps({"address": address}))
