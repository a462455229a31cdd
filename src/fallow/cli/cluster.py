"""`fallow nats` and `fallow up --coordinator-only`: the parts of a pool that is more than one machine.

Each is one child under a supervisor, with a folder of its own in the home, so that a machine may run several.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from fallow.cli.account_limits import account_limits
from fallow.cli.bodies import HomeLock, coordinator_body
from fallow.cli.nats_server import Cluster, monitor_address, start_server, wait_until_serving
from fallow.cli.processes import Child, fork_child
from fallow.cli.supervisor import Service, ServiceFailed, Supervisor
from fallow.cli.up import (
    COORDINATOR,
    LOOPBACK,
    NATS,
    advertised_host,
    bracketed,
    choose_port,
    external_address,
    http_port,
    is_loopback,
    pool_token,
    say_sight,
    split_listen,
)
from fallow.model.errors import SettingError
from fallow.wire.address import PoolAddress, home_dir

if TYPE_CHECKING:
    from fallow.cli.nats_routes import RouteWatch

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class NatsOptions(Struct, frozen=True):
    """What `fallow nats` was asked for."""

    listen: str
    """HOST:PORT for agents, customers and coordinators."""
    cluster: str = ""
    """HOST:PORT for the other servers; '': a server by itself."""
    routes: tuple[str, ...] = ()
    """HOST:PORT of other servers' cluster ports; its own may be among them."""
    verbose: bool = False


class CoordinatorOnly(Struct, frozen=True):
    """What `fallow up --coordinator-only` was asked for."""

    nats: str
    store: str
    blobs: str
    name: str = ""
    pool: str = ""
    listen: str = ""
    health: str = ""
    account_limits: tuple[str, ...] = ()
    verbose: bool = False


def run_nats(options: NatsOptions, say: Callable[[str], None] = print) -> int:
    """Run one NATS server until SIGINT or SIGTERM. Returns the exit code; raises FallowError in words."""
    host, wanted = split_listen(options.listen)
    if not wanted:
        raise SettingError(f"--listen {options.listen!r} names no port: the others must know it. Say HOST:PORT.")
    cluster = _cluster_of(options)
    home = home_dir()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = pool_token(home)
    state = _folder(home / "nats" / str(wanted))
    with_others = f", with routes to {' and '.join(cluster.routes)}" if cluster and cluster.routes else ""

    def start(supervisor: Supervisor) -> Service:
        def child() -> Child:
            return start_server(state, host, wanted, token, close=supervisor.child_fds(), cluster=cluster)

        return Service(NATS, child, grace_s=2.0)

    def wait(supervisor: Supervisor, service: Service) -> None:
        child = service.child
        if not wait_until_serving(
            host, wanted, lambda: not supervisor.ending and child is not None and not child.poll()
        ):
            if supervisor.ending:
                return
            words = child.last_words(lines=2) if child is not None else ""
            raise ServiceFailed(
                f"the nats-server did not start on {options.listen}. Its last words: {words or '(none)'}"
            )
        service.was_ready = True
        address = PoolAddress((f"{bracketed(advertised_host(host))}:{wanted}",), token)
        say(f"A NATS server is up at {address.public}{with_others}. Ctrl-C ends it.")
        say("Its address, for --nats, `fallow join` and `fallow connect` (of a cluster: TOKEN@HOST:PORT,HOST:PORT...):")
        say(f"  {address}")
        sys.stdout.flush()
        if cluster is not None and cluster.routes:
            watch.append(_route_watch(state, service, cluster, token, say))

    watch: list[RouteWatch] = []

    def prepared() -> None:
        choose_port(host, wanted, 0)
        if cluster is not None:
            choose_port(cluster.host, cluster.port, 0)

    end = "The server has ended."
    return _supervise(state, f"a NATS server on port {wanted}", start, wait, prepared, say, end, watch)


def _route_watch(state: Path, service: Service, cluster: Cluster, token: str, say: Callable[[str], None]) -> RouteWatch:
    from fallow.cli.nats_routes import RouteWatch

    def monitor() -> str:
        return monitor_address(state, service.child.pid) if service.child is not None else ""

    def tell(words: str) -> None:
        say(f"fallow: {words}")
        sys.stdout.flush()

    return RouteWatch(monitor, cluster.routes, token, str(home_dir()), tell)


def _cluster_of(options: NatsOptions) -> Cluster | None:
    if not options.cluster:
        if options.routes:
            raise SettingError("--route needs --cluster HOST:PORT: where this server listens for the others.")
        return None
    host, port = split_listen(options.cluster)
    if not port:
        raise SettingError(f"--cluster {options.cluster!r} names no port: the other servers must know it.")
    routes = []
    for route in options.routes:
        _, route_port = split_listen(route)
        if not route_port:
            raise SettingError(f"--route {route!r} is not HOST:PORT (the other server's --cluster address).")
        if route != options.cluster:
            routes.append(route)
    return Cluster(host, port, tuple(routes))


def run_coordinator_only(options: CoordinatorOnly, say: Callable[[str], None] = print) -> int:
    """Run one coordinator until SIGINT, SIGTERM or `fallow drain`. Returns the exit code; raises FallowError."""
    address = external_address(options.nats)
    if address is None:
        raise SettingError("--coordinator-only needs --nats TOKEN@HOST:PORT[,HOST:PORT...]: the pool's NATS servers.")
    if not options.store:
        raise SettingError("--coordinator-only needs --store postgresql://USER:PASSWORD@HOST:PORT/DATABASE.")
    if options.store.startswith("sqlite"):
        raise SettingError(
            "SQLite holds a pool of one coordinator; several need "
            "--store postgresql://USER:PASSWORD@HOST:PORT/DATABASE. `fallow up` alone runs a pool on SQLite."
        )
    if not options.blobs:
        raise SettingError(
            "--coordinator-only needs --blobs: a folder that all coordinators of the pool share, or s3://BUCKET/PREFIX."
        )
    account_limits(options.account_limits)
    name = options.name or socket.gethostname()
    if not _NAME.fullmatch(name):
        raise SettingError(f"{name!r} cannot name a coordinator: use letters, digits, dots, dashes and underscores.")
    host, wanted = split_listen(options.listen)
    http = (advertised_host(host), http_port(host, wanted)) if not is_loopback(host) else (LOOPBACK, wanted)
    home = home_dir()
    state = _folder(home / "coordinators" / name)

    def start(supervisor: Supervisor) -> Service:
        body = coordinator_body(
            address,
            options.store,
            options.blobs,
            options.pool or "pool",
            False,
            http,
            name,
            options.health,
            state / "pool-id",
            options.account_limits,
        )

        def child() -> Child:
            return fork_child(
                COORDINATOR,
                body,
                log=state / "coordinator.log",
                close=supervisor.child_fds(),
                inherit_stderr=options.verbose,
            )

        return Service(COORDINATOR, child, grace_s=10.0, may_leave=True, last=True)

    def wait(supervisor: Supervisor, service: Service) -> None:
        def ready(_service: Service) -> None:
            if not announced:
                announced.append(True)
                say(f"The coordinator {name!r} is up on {address.public}. Ctrl-C or `fallow drain {name}` ends it.")
                say_sight(address, say)
                sys.stdout.flush()

        announced: list[bool] = []
        supervisor.on_ready = ready

    end = f"The coordinator {name!r} has ended; what it had goes on at the others, or when one runs again."
    return _supervise(state, f"a coordinator called {name!r}", start, wait, lambda: None, say, end)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _supervise(
    state: Path,
    what: str,
    start: Callable[[Supervisor], Service],
    wait: Callable[[Supervisor, Service], None],
    prepare: Callable[[], None],
    say: Callable[[str], None],
    end_words: str,
    watch: Sequence[RouteWatch] = (),
) -> int:
    """One child under a supervisor, until told to end. `wait` returns when the child serves, or sets on_ready."""
    if not hasattr(os, "fork"):
        raise SettingError("this needs Linux or macOS.")
    lock = HomeLock(state)
    if not lock.take():
        raise SettingError(f"{what} runs already on this machine, with its state in {state}.")
    failure = ""
    try:
        prepare()
        supervisor = Supervisor(lambda line: print(f"fallow: {line}", file=sys.stderr, flush=True))
        supervisor.private_fds.append(lock.fd)
        try:
            service = start(supervisor)
            supervisor.add(service)
            wait(supervisor, service)
            while not supervisor.ending and watch:
                supervisor.run_once(max(0.0, watch[0].next_s - time.monotonic()))
                if not supervisor.ending and time.monotonic() >= watch[0].next_s:
                    watch[0].look()
            supervisor.run()
        except ServiceFailed as error:
            failure = str(error)
        finally:
            supervisor.end((service.name,))
            supervisor.close()
    finally:
        lock.release()
    if failure:
        raise SettingError(failure)
    say(end_words)
    return 0
