"""`fallow up`: a whole pool on this machine (NATS, coordinator, local node) under one small supervisor process.

Also `python -m fallow.cli.up --embedded --ready-fd N --lifeline-fd M [--home DIR] [--slots N]`, the pool of one
script: private, in a temporary folder, gone when the other end of the lifeline closes.

This module is on the path of every cold start, so it imports nothing heavy: children are forked first and import
what they need side by side, while the server starts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from fallow.cli.bodies import HomeLock, agent_body, coordinator_body
from fallow.cli.full_disk import full_disk_in_words
from fallow.cli.nats_server import (
    free_port,
    port_is_free,
    reachable_host,
    start_server,
    wait_until_serving,
)
from fallow.cli.processes import Child, fork_child, is_writable
from fallow.cli.supervisor import Service, ServiceFailed, Supervisor
from fallow.model.errors import FallowError, PoolAddressError, SettingError
from fallow.wire.address import (
    PoolAddress,
    PoolFile,
    home_dir,
    parse_address,
    remove_pool_file,
    running_pool,
    write_pool_file,
    write_private,
)

LOOPBACK = "127.0.0.1"
NATS, COORDINATOR, AGENT = "nats-server", "coordinator", "local node"
END_ORDER = (AGENT, COORDINATOR, NATS)


class UpOptions(Struct, frozen=True):
    """What `fallow up` was asked for."""

    listen: str = ""
    """HOST or HOST:PORT to bind; '': loopback only."""
    slots: int = 0
    """Of the local node; 0: one per CPU."""
    name: str = ""
    store: str = ""
    """URL of the store; '': SQLite in the home folder."""
    blobs: str = ""
    """A folder, or s3://...; '': in the home folder."""
    agent: bool = True
    nats: str = ""
    """TOKEN@HOST:PORT[,HOST:PORT...] of NATS servers that run already; '': start one."""
    health: str = ""
    """HOST:PORT to answer /healthz and /readyz on; '': nowhere."""
    account_limits: tuple[str, ...] = ()
    """As cli.account_limits reads them."""
    verbose: bool = False


# ---------------------------------------------------------------- decisions


def split_listen(text: str) -> tuple[str, int]:
    """HOST[:PORT] as (host, port or 0). Raises SettingError in words."""
    if not text:
        return LOOPBACK, 0
    host, port = text, ""
    if text.startswith("["):
        closing = text.find("]")
        host, port = text[: closing + 1], text[closing + 1 :].removeprefix(":")
    elif text.count(":") == 1:
        host, port = text.split(":")
    if not host or (port and not (port.isdigit() and 0 < int(port) < 65536)):
        raise SettingError(f"cannot listen on {text!r}: expected HOST or HOST:PORT, such as 0.0.0.0:7461.")
    return host, int(port or 0)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach the host."""
    bare = host.strip("[]")
    return bare == "localhost" or bare == "::1" or bare.startswith("127.")


def bracketed(host: str) -> str:
    """A host as it stands before ':PORT'."""
    bare = host.strip("[]")
    return f"[{bare}]" if ":" in bare else bare


def advertised_host(host: str) -> str:
    """What other machines dial: the host itself, or this machine's address towards the world where it means all."""
    bare = host.strip("[]")
    if bare not in ("0.0.0.0", "::", ""):
        return bare
    family, far = (socket.AF_INET6, "2001:db8::1") if bare == "::" else (socket.AF_INET, "192.0.2.1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it only picks the route, and so the address.
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def choose_port(host: str, wanted: int, remembered: int) -> int:
    """The port asked for, else the one of the last time if it is free, else any free one. Raises SettingError."""
    if wanted:
        if not port_is_free(host, wanted):
            free_port(host)
            raise SettingError(
                f"port {wanted} on {host} is in use by another program. Choose another one: "
                f"--listen {host}:{wanted + 1}, or leave the port out."
            )
        return wanted
    if remembered and port_is_free(host, remembered):
        return remembered
    return free_port(host)


def http_port(host: str, wanted: int) -> int:
    """Where large blobs are served: the port after the one that was asked for, so that a firewall can be told both
    (if that is taken, or none was asked for: any)."""
    return wanted + 1 if 0 < wanted < 65535 and port_is_free(host, wanted + 1) else 0


# ---------------------------------------------------------------- what a home keeps


def pool_token(home: Path) -> str:
    """The pool's secret, made at the first call (file `token`, 0600)."""
    path = home / "token"
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = new_token()
        write_private(path, token + "\n")
    elif path.stat().st_mode & 0o077:
        # One that is handed in (a container's mounted file) may be somebody else's: who reads it is up to them.
        with contextlib.suppress(OSError):
            path.chmod(0o600)
    return token


def new_token() -> str:
    """160 random bits that need no quoting anywhere."""
    return os.urandom(20).hex()


def _remembered_port(home: Path) -> int:
    try:
        return int((home / "pool" / "port").read_text())
    except (OSError, ValueError):
        return 0


# ---------------------------------------------------------------- fallow up


def run_up(options: UpOptions, say: Callable[[str], None] = print) -> int:
    """Run the pool of this home until SIGINT or SIGTERM. Returns the exit code; raises FallowError in words."""
    if not hasattr(os, "fork"):
        raise SettingError(
            "`fallow up` needs Linux or macOS. This machine can use a pool that runs elsewhere: `fallow connect`."
        )
    if options.account_limits:
        from fallow.cli.account_limits import account_limits

        account_limits(options.account_limits)  # what is wrong is said before anything starts
    home = home_dir()
    with full_disk_in_words(home):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = HomeLock(home)
        if not lock.take():
            raise SettingError(_runs_already(home))
        try:
            return _run_locked(options, home, lock, say)
        finally:
            lock.release()


def _runs_already(home: Path) -> str:
    pool = running_pool()
    where = f" (process {pool.pid}) at {parse_address(pool.address).public}" if pool else ""
    return (
        f"a pool of {home} runs already{where}. Scripts of this user find it by themselves; see `fallow status`. "
        "For a second pool give another --home."
    )


def _run_locked(options: UpOptions, home: Path, lock: HomeLock, say: Callable[[str], None]) -> int:
    state = home / "pool"
    state.mkdir(exist_ok=True, mode=0o700)
    blobs = options.blobs or str(state / "blobs")
    name = options.name or socket.gethostname()
    host, wanted = split_listen(options.listen)
    external = external_address(options.nats)
    if external is None:
        token = pool_token(home)
        port = choose_port(host, wanted, _remembered_port(home))
        address = PoolAddress((f"{bracketed(reachable_host(host))}:{port}",), token)
        public = PoolAddress((f"{bracketed(advertised_host(host))}:{port}",), token)
    else:
        port, token = 0, external.secret
        address = public = external
    store = options.store or f"sqlite:///{state / 'store.sqlite'}"

    supervisor = Supervisor(lambda line: print(f"fallow: {line}", file=sys.stderr, flush=True))
    supervisor.private_fds.append(lock.fd)
    close = supervisor.child_fds

    def logged(child_name: str, log: str, body: Callable[[Callable[[], None]], int]) -> Callable[[], Child]:
        return lambda: fork_child(child_name, body, log=state / log, close=close(), inherit_stderr=options.verbose)

    failure = ""
    try:
        if external is None:
            _start_nats(supervisor, state, host, port, token)
            write_private(state / "port", f"{port}\n")
        http = (advertised_host(host), http_port(host, wanted))
        identity = state / "pool-id" if options.store else None
        coordinator = coordinator_body(
            address, store, blobs, name, False, http, name, options.health, identity, options.account_limits
        )
        start = logged(COORDINATOR, "coordinator.log", coordinator)
        supervisor.add(Service(COORDINATOR, start, grace_s=8.0, may_leave=True))
        if options.agent:
            agent = agent_body(address, name, options.slots, home / "agent")
            supervisor.add(Service(AGENT, logged(AGENT, "agent.log", agent), grace_s=10.0, needed=False))
        _announce_when_ready(supervisor, options, address, public, host, name, say)
        supervisor.run()
    except ServiceFailed as error:
        failure = str(error)
    finally:
        remove_pool_file()
        supervisor.end(END_ORDER)
        supervisor.close()
    if failure:
        raise SettingError(failure)
    say("The pool has ended. Jobs are kept in its store and go on when it runs again.")
    return 0


def external_address(text: str) -> PoolAddress | None:
    if not text:
        return None
    try:
        return parse_address(text.removeprefix("nats://").removeprefix("tls://"))
    except PoolAddressError as error:
        raise SettingError(f"--nats: {error}") from None


def _start_nats(supervisor: Supervisor, state: Path, host: str, port: int, token: str) -> None:
    def start() -> Child:
        return start_server(state, host, port, token, close=supervisor.child_fds())

    service = Service(NATS, start, grace_s=2.0)
    supervisor.add(service)
    child = service.child
    if not wait_until_serving(host, port, lambda: not supervisor.ending and child is not None and not child.poll()):
        if supervisor.ending:
            return
        words = child.last_words(lines=2) if child is not None else ""
        raise ServiceFailed(f"the nats-server did not start on {host}:{port}. Its last words: {words or '(none)'}")
    service.was_ready = True


def _announce_when_ready(
    supervisor: Supervisor,
    options: UpOptions,
    address: PoolAddress,
    public: PoolAddress,
    host: str,
    name: str,
    say: Callable[[str], None],
) -> None:
    """Write the file by which scripts find the pool, and say how to use it, once coordinator and node are there."""
    waiting = {COORDINATOR, AGENT} if options.agent else {COORDINATOR}

    def ready(service: Service) -> None:
        if service.name not in waiting:
            return
        waiting.discard(service.name)
        if service.name == COORDINATOR:
            _write_pool_file(address)
        if not waiting:
            _announce(options, public, host, name, say)

    supervisor.on_ready = ready


def say_sight(address: PoolAddress, say: Callable[[str], None]) -> None:
    """Of several NATS servers: whether they see each other."""
    if len(address.servers) < 2:
        return
    from fallow.wire.server_sight import look_at_servers, sight_words

    wrong = sight_words(look_at_servers(address))
    for words in wrong:
        say(f"fallow: {words}")
    if not wrong:
        say(f"Its {len(address.servers)} NATS servers see each other.")


def _write_pool_file(address: PoolAddress) -> None:
    import psutil

    started = float(psutil.Process().create_time())
    write_pool_file(PoolFile(address=str(address), pid=os.getpid(), pool_id="", started=started))


def _announce(options: UpOptions, public: PoolAddress, host: str, name: str, say: Callable[[str], None]) -> None:
    local = "with a node on this machine" if options.agent else "without a node yet"
    say(f"The pool {name!r} is up at {public.public}, {local}. Ctrl-C ends it.")
    say("Scripts of this user on this machine find it by themselves.")
    if options.nats or not is_loopback(host):
        say("On other machines that shall work for it:")
        say(f"  fallow join {public}")
        say("On other machines that shall use it:")
        say(f"  fallow connect {public}")
    else:
        say("To let other machines in: `fallow up --listen 0.0.0.0`.")
    if options.nats:
        say_sight(public, say)
    sys.stdout.flush()


# ---------------------------------------------------------------- the embedded pool


class EmbeddedOptions(Struct, frozen=True):
    """Arguments of the embedded mode. Descriptors are inherited from the script's process."""

    ready_fd: int
    lifeline_fd: int
    home: Path
    slots: int = 0


def run_embedded(options: EmbeddedOptions) -> int:
    """Run the pool of one script. Writes the address line to `ready_fd` once a client can connect."""
    import tempfile

    for fd in (options.ready_fd, options.lifeline_fd):
        os.set_inheritable(fd, False)
    folder = Path(tempfile.mkdtemp(prefix="fallow-pool-"))
    supervisor = Supervisor(
        lambda line: print(f"fallow: {line}", file=sys.stderr, flush=True),
        lifeline=options.lifeline_fd,
        ignore_interrupt=True,
    )
    supervisor.private_fds.append(options.ready_fd)
    failure = ""
    try:
        with full_disk_in_words(folder):
            address = _start_embedded(supervisor, folder, options)
        with contextlib.suppress(BrokenPipeError):  # the script is gone already, as its lifeline says too
            os.write(options.ready_fd, f"{address}\n".encode())
        os.close(options.ready_fd)
        supervisor.private_fds.remove(options.ready_fd)
        supervisor.run()
    except (ServiceFailed, FallowError) as error:
        failure = str(error)
    finally:
        supervisor.end(END_ORDER)
        supervisor.close()
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    if failure:
        print(f"fallow: {failure}", file=sys.stderr, flush=True)
        return 1
    return 0


def _start_embedded(supervisor: Supervisor, folder: Path, options: EmbeddedOptions) -> PoolAddress:
    host, token, port = LOOPBACK, new_token(), free_port(LOOPBACK)
    address = PoolAddress((f"{host}:{port}",), token)
    blobs = str(folder / "blobs")
    close = supervisor.child_fds
    coordinator = coordinator_body(address, f"sqlite:///{folder / 'store.sqlite'}", blobs, "embedded", True)
    # Environments outlive the pool, and so does the node's identity; all else is in the pool's own folder.
    home = options.home / "agent"
    if not is_writable(home):
        home = folder / "home"
    agent = agent_body(address, socket.gethostname(), options.slots, home, folder / "agent")

    server = Service(NATS, lambda: start_server(folder, host, port, token, close=close()), grace_s=0.0)
    supervisor.add(server)
    supervisor.add(
        Service(
            COORDINATOR,
            lambda: fork_child(COORDINATOR, coordinator, log=folder / "coordinator.log", close=close()),
            grace_s=0.0,
        )
    )
    supervisor.add(
        Service(AGENT, lambda: fork_child(AGENT, agent, log=folder / "agent.log", close=close()), grace_s=3.0)
    )
    child = server.child
    if not wait_until_serving(host, port, lambda: child is not None and not child.poll()):
        words = child.last_words(lines=2) if child is not None else ""
        raise ServiceFailed(f"the nats-server did not start. Its last words: {words or '(none)'}")
    server.was_ready = True
    return address


def _parse_embedded(arguments: list[str]) -> EmbeddedOptions:
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if flag == "--embedded":
            continue
        if flag not in ("--ready-fd", "--lifeline-fd", "--home", "--slots") or not rest:
            raise SettingError(f"unexpected argument {flag!r}")
        values[flag] = rest.pop(0)
    return EmbeddedOptions(
        ready_fd=int(values["--ready-fd"]),
        lifeline_fd=int(values["--lifeline-fd"]),
        home=Path(values["--home"]) if "--home" in values else home_dir(),
        slots=int(values.get("--slots", "0")),
    )


if __name__ == "__main__":
    sys.exit(run_embedded(_parse_embedded(sys.argv[1:])))
