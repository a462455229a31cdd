"""The parts of a large pool on one machine, each started by the command that an operator would type."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from fallow.wire.blob_files import is_digest
from tests.chaos.proxy import Links
from tests.engines.postgres import Postgres, free_port, programs
from tests.engines.seaweed import Seaweed
from tests.pool import MARK, client_env, describe, lend_always, marked_processes, wait_for

NODES_SLOTS = 2
CLOCK = Path(__file__).with_name("clock")


def write_clock(clock: Path, offset_s: int) -> None:
    """What is added to the wall clock of those who go by the file (see clock/sitecustomize.py)."""
    fresh = clock.with_suffix(".new")
    fresh.write_text(f"{offset_s:+d}\n")
    fresh.replace(clock)


def with_clock(env: Mapping[str, str], clock: Path) -> dict[str, str]:
    """The environment of a process that goes by it."""
    write_clock(clock, 0)
    path = os.pathsep.join([str(CLOCK), *filter(None, [env.get("PYTHONPATH", "")])])
    return {**env, "FALLOW_TEST_CLOCK": str(clock), "PYTHONPATH": path}


class Part:
    """One command, with the processes below it."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path, says: str) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.log = log
        self.says = says
        self.process: subprocess.Popen[bytes] | None = None
        self.clock: Path | None = None
        """The file that says what is added to the wall clock of its processes (see clock/sitecustomize.py)."""

    def set_clock(self, offset_s: int) -> None:
        """From the next second on, the wall clock of its processes is wrong by so much; steady clocks go on."""
        assert self.clock is not None
        write_clock(self.clock, offset_s)

    def launch(self) -> None:
        with self.log.open("ab") as log:
            log.truncate(0)
            self.process = subprocess.Popen(
                self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start(self) -> None:
        """Start it, and wait until it says that it serves."""
        self.launch()
        self.wait_up()

    def wait_up(self) -> None:
        def up() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.said()}")
            return self.says in self.said()

        wait_for(f"{self.name} to be up; it said:\n{self.said()}", up)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """This command's process and everything below it."""
        if self.process is None:
            return []
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []

    def children(self) -> list[psutil.Process]:
        """Direct children: what a supervisor starts again."""
        try:
            return psutil.Process(self.process.pid).children() if self.process is not None else []
        except psutil.Error:
            return []

    def signal_all(self, number: signal.Signals) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def kill(self) -> None:
        """All of it at once, as a machine that loses its power."""
        self.signal_all(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)

    def end(self, limit_s: float = 60.0) -> int:
        """As an operator ends it; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)

    def memory_bytes(self) -> int:
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total


class Large:
    """PostgreSQL, three NATS servers, coordinators and nodes; links between them that can be cut where `links` are."""

    def __init__(self, folder: Path, mark: str, links: Links | None = None, blobs: Path | None = None) -> None:
        self.folder = folder
        self.mark = mark
        self.links = links
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.token = os.urandom(16).hex()
        (self.home / "token").touch(0o600)
        (self.home / "token").write_text(self.token + "\n")
        self.blobs = blobs or folder / "blobs"
        self.nats_ports = [free_port() for _ in range(3)]
        self.cluster_ports = [free_port() for _ in range(3)]
        self.parts: dict[str, Part] = {}
        self.postgres: Postgres | None = None
        self.seaweed: Seaweed | None = None
        """Where blobs are, instead of the folder."""
        self.health: dict[str, str] = {}

    # ------------------------------------------------------------ addresses

    def address(self, who: str) -> str:
        """TOKEN@... of the NATS servers as this part reaches them."""
        return f"{self.token}@{','.join(f'127.0.0.1:{self._port(who, index)}' for index in range(3))}"

    def _port(self, who: str, index: int) -> int:
        if self.links is None:
            return self.nats_ports[index]
        name = f"{who}->nats{index + 1}"
        link = self.links.by_name.get(name) or self.links.add(name, self.nats_ports[index])
        return link.port

    def store_url(self, who: str) -> str:
        assert self.postgres is not None
        url = self.postgres.url()
        if self.links is None:
            return url
        name = f"{who}->postgres"
        link = self.links.by_name.get(name) or self.links.add(name, self.postgres.port)
        return url.replace(f":{self.postgres.port}/", f":{link.port}/")

    # ------------------------------------------------------------ parts

    def start_postgres(self, data_in: Path | None = None, *settings: str) -> Postgres:
        found = programs()
        assert found is not None, "no PostgreSQL is installed"
        self.postgres = Postgres(found, data_in, settings)
        self.postgres.start()
        return self.postgres

    def start_seaweed(self, weed: Path, data_in: Path | None = None) -> Seaweed:
        self.seaweed = Seaweed(weed, data_in)
        self.seaweed.start()
        return self.seaweed

    def blobs_url(self) -> str:
        """As `fallow up --blobs` takes it."""
        return self.seaweed.url() if self.seaweed is not None else str(self.blobs)

    def blob_names(self) -> set[str]:
        """Digests of all blobs that are there."""
        if self.seaweed is not None:
            names = (name for name in self.seaweed.objects() if "/.trash/" not in f"/{name}")
            return {digest for name in names if is_digest(digest := name.rpartition("/")[2])}
        return {path.name for path in self.blobs.glob("??/*")}

    def nats(self, index: int) -> Part:
        routes = [f"127.0.0.1:{port}" for port in self.cluster_ports]
        return self._part(
            f"nats{index + 1}", "A NATS server is up", self.home,
            "nats", "--listen", f"127.0.0.1:{self.nats_ports[index]}", "--cluster", routes[index],
            *(word for route in routes for word in ("--route", route)),
        )  # fmt: skip

    def coordinator(self, name: str, *arguments: str, store: str = "") -> Part:
        self.health[name] = f"127.0.0.1:{free_port()}"
        return self._part(
            name, f"The coordinator '{name}' is up", self.home,
            "up", "--coordinator-only", "--name", name, "--pool", "large", "--store", store or self.store_url(name),
            "--nats", self.address(name), "--blobs", self.blobs_url(), "--health", self.health[name], *arguments,
        )  # fmt: skip

    def node(self, name: str, slots: int = NODES_SLOTS) -> Part:
        home = self.folder / f"home-{name}"
        lend_always(home)
        return self._part(
            name, "works for the pool", home,
            "join", self.address(name), "--own-pool", "--name", name, "--slots", str(slots),
        )  # fmt: skip

    def _part(self, name: str, says: str, home: Path, *words: str) -> Part:
        env = {**client_env(home), MARK: self.mark}
        command = [sys.executable, "-m", "fallow.cli.main", *words]
        part = self.parts[name] = Part(name, command, env, self.folder / f"{name}.txt", says)
        if self.links is not None and not name.startswith("nats"):
            part.clock = self.folder / f"{name}.clock"
            env.update(with_clock(env, part.clock))
        return part

    def start_all(self, coordinators: int = 3, nodes: int = 3) -> None:
        if self.postgres is None:
            self.start_postgres()
        for index in range(3):
            self.nats(index).launch()
        for index in range(3):
            self.parts[f"nats{index + 1}"].wait_up()
        for number in range(coordinators):
            self.coordinator(f"c{number + 1}").launch()
        for number in range(coordinators):
            self.parts[f"c{number + 1}"].wait_up()
        for number in range(nodes):
            self.node(f"n{number + 1}").launch()
        for number in range(nodes):
            self.parts[f"n{number + 1}"].wait_up()

    # ------------------------------------------------------------ clients

    def client_env(self, who: str) -> dict[str, str]:
        return {**client_env(self.folder / f"home-{who}"), "FALLOW_URL": self.address(who), MARK: self.mark}

    def cli(self, *words: str, who: str = "operator", timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fallow.cli.main", *words],
            env=self.client_env(who), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip

    # ------------------------------------------------------------ the end

    def end_all(self) -> dict[str, int]:
        """End everything in order; exit codes by name."""
        codes = {}
        for kind in ("n", "c", "nats"):
            chosen = [p for n, p in self.parts.items() if n.rstrip("0123456789") == kind and p.process is not None]
            for part in chosen:
                if part.is_running and part.process is not None:
                    part.process.send_signal(signal.SIGTERM)
            for part in chosen:
                assert part.process is not None
                codes[part.name] = part.process.wait(60)
        return codes

    def left_over(self, limit_s: float = 15.0) -> str:
        """Processes that are still there though everything has ended, in words."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and marked_processes(self.mark):
            time.sleep(0.1)
        return describe(marked_processes(self.mark))

    def close(self) -> None:
        """Whatever is left, without asking."""
        for process in marked_processes(self.mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for part in self.parts.values():
            if part.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    part.process.wait(10)
        if self.postgres is not None:
            self.postgres.remove()
        if self.seaweed is not None:
            self.seaweed.remove()


def http_get(address: str, path: str) -> tuple[int, dict[str, object]]:
    """(status, body) of a coordinator's health; 0 where nobody answers."""
    import json
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


Waiting = Callable[[], object]
