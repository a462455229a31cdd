"""NATS servers, a store and coordinators of a bench's own, each a process that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fallow.cli.nats_server import find_server, free_port, server_config, wait_until_serving
from fallow.wire.address import PoolAddress

TOKEN = "bench"
HOST = "127.0.0.1"


class NatsServer:
    """One server, or one of a cluster (routes to the ports of the others)."""

    def __init__(self, folder: Path, number: int = 0, port: int = 0, cluster: tuple[int, list[int]] | None = None):
        self.port = port or free_port(HOST)
        config = folder / f"nats-{number}.conf"
        text = server_config(HOST, self.port, TOKEN)
        if cluster is not None:
            own, others = cluster
            routes = ", ".join(f'"nats-route://{HOST}:{other}"' for other in others)
            text += f'cluster {{ name: "bench", host: "{HOST}", port: {own}, routes: [{routes}] }}\n'
        config.write_text(text)
        self._command = [find_server(), "-c", str(config)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        if not wait_until_serving(HOST, self.port, lambda: self.process.poll() is None, 30.0):
            raise SystemExit("bench: the NATS server does not start")


class Coordinator:
    def __init__(self, pool: BenchPool, owner: str) -> None:
        self.owner = owner
        self._stats = pool.folder / f"{owner}.json"
        self._command = [
            sys.executable, "-m", "bench.scale.coordinator", str(pool.address), pool.store_url, str(pool.folder), owner,
        ]  # fmt: skip
        self._log = pool.folder / f"{owner}.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"ready\n":
            raise SystemExit(f"bench: a coordinator does not start:\n{self._log.read_text()[-2000:]}")

    def stats(self) -> dict[str, Any]:
        return dict(json.loads(self._stats.read_text()))

    def timeline(self) -> dict[str, Any]:
        """What its loop did since it began (it runs with BENCH_TIMELINE=1)."""
        found = self._stats.with_suffix(".timeline.json")
        self._stats.with_suffix(".timeline").touch()
        deadline = time.monotonic() + 30.0
        while not found.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: {self.owner} does not say what its loop did")
            time.sleep(0.05)
        content = dict(json.loads(found.read_text()))
        found.unlink()
        return content

    def log(self) -> str:
        return self._log.read_text()


class BenchPool:
    """Everything lies in a temporary folder and ends with the `with` block."""

    def __init__(self, coordinators: int = 1, store: str = "sqlite", servers: int = 1) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fallow-bench-")))
        try:
            self.servers = self._start_servers(servers)
            self.address = PoolAddress(tuple(f"{HOST}:{server.port}" for server in self.servers), TOKEN)
            self.store_url = self._store(store)
            self.coordinators: list[Coordinator] = []
            for number in range(coordinators):
                self.coordinators.append(Coordinator(self, f"c{number + 1}"))
                self._stack.callback(end, self.coordinators[-1])
        except BaseException:
            self._stack.close()
            raise

    def _start_servers(self, count: int) -> list[NatsServer]:
        ports = [free_port(HOST) for _ in range(2 * count)]
        servers = []
        for number in range(count):
            routes = ports[count:]
            cluster = (routes[number], [p for p in routes if p != routes[number]]) if count > 1 else None
            servers.append(NatsServer(self.folder, number, ports[number], cluster))
            self._stack.callback(end, servers[-1])
        for server in servers:
            server.wait()
        return servers

    def _store(self, kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{self.folder}/store.sqlite"
        if "://" in kind:
            return kind
        from tests.engines.postgres import Postgres, programs

        found = programs()
        if found is None:
            raise SystemExit("bench: no PostgreSQL here: install its programs, or give --store postgresql://...")
        engine = Postgres(found)
        self._stack.callback(engine.remove)
        engine.start("max_connections=100", "synchronous_commit=on")
        return engine.url()

    def environment(self, **more: str) -> dict[str, str]:
        """For processes that are to find this pool."""
        return os.environ | {"FALLOW_URL": str(self.address), "FALLOW_HOME": str(self.folder / "home")} | more

    def client(self, tasks: int, jobs: int, task_s: float, every_s: float = 1.0) -> subprocess.Popen[bytes]:
        """Start bench.scale.client; its output comes in a pipe that has to be read."""
        words = [str(tasks), str(jobs), str(task_s), str(every_s)]
        client = subprocess.Popen(
            [sys.executable, "-m", "bench.scale.client", *words],
            env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._stack.callback(end, client)
        return client

    def agent(self, name: str, slots: int, port: int = 0) -> subprocess.Popen[bytes]:
        """Start an agent with workers, and wait until it takes orders. `port`: of a server or a link to one."""
        address = PoolAddress((f"{HOST}:{port}",), TOKEN) if port else self.address
        words = [str(address), name, str(slots), str(self.folder / name)]
        with (self.folder / f"{name}.log").open("ab") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "bench.scale.agent", *words],
                env=self.environment(), stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._stack.callback(end_kindly, agent)
        assert agent.stdout is not None
        if agent.stdout.readline() != b"ready\n":
            raise SystemExit(f"bench: an agent does not start:\n{(self.folder / f'{name}.log').read_text()[-2000:]}")
        return agent

    def callback(self, function: Any, *arguments: Any) -> None:
        self._stack.callback(function, *arguments)

    def __enter__(self) -> BenchPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def end(holder: Any) -> None:
    """Kill a process of ours, whatever state it is in."""
    process: subprocess.Popen[bytes] = getattr(holder, "process", holder)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def end_kindly(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM first, so that what it started ends too."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10.0)
    end(process)


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p99 and most, in milliseconds."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"count": len(ordered), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)}


def chunks(total: int, parts: int) -> Iterator[int]:
    """`total` in `parts` numbers that differ by one at most."""
    for part in range(parts):
        yield total // parts + (1 if part < total % parts else 0)
