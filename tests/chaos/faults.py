"""What goes wrong, chosen by a seed: each fault is begun, lasts a while, and is ended."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from tests.chaos.parts import Large, Part
from tests.engines.wall_clock import set_clock, why_not


@dataclass(frozen=True)
class Fault:
    """`begin` makes it, `end` undoes it; `seconds` is how long it lasts."""

    kind: str
    target: str
    seconds: float
    begin: Callable[[], object]
    end: Callable[[], object]

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


def _nothing() -> None:
    return None


class Customers(Protocol):
    """Those who use the pool."""

    def names(self) -> list[str]: ...

    def kill(self, name: str) -> None: ...

    def start_again(self, name: str) -> None: ...

    def set_clock(self, name: str, offset_s: int) -> None: ...


class Faults:
    """All that can be done to a pool here. `disks`: small ones, by whose they are; `left_out`: what cannot be done, and
    why."""

    def __init__(self, large: Large, seed: int, disks: dict[str, Path], customers: Customers) -> None:
        self._large = large
        self._random = random.Random(seed)
        self._disks = disks
        self._customers = customers
        self._bag: list[Callable[[], Fault | None]] = []
        self.left_out = [
            "links between NATS servers (they find each other's real addresses); a stopped server stands for them",
        ]
        self._no_clocks = why_not()
        if self._no_clocks:
            self.left_out.append(f"clocks of NATS servers, PostgreSQL and SeaweedFS: {self._no_clocks}")
        if not disks:
            self.left_out.append("full disks: no small file system can be made here (it needs root)")

    def next(self) -> Fault:
        """Every kind comes once before any comes again."""
        while True:
            if not self._bag:
                self._bag = list(self._kinds())
                self._random.shuffle(self._bag)
            fault = self._bag.pop()()
            if fault is not None:
                return fault

    def _kinds(self) -> list[Callable[[], Fault | None]]:
        kinds: list[Callable[[], Fault | None]] = []
        for prefix in ("c", "nats", "n"):
            kinds += [
                lambda prefix=prefix: self._kill_child(prefix),  # type: ignore[misc]
                lambda prefix=prefix: self._power_loss(prefix),  # type: ignore[misc]
                lambda prefix=prefix: self._stop(prefix),  # type: ignore[misc]
                lambda prefix=prefix: self._restart(prefix),  # type: ignore[misc]
            ]
        kinds += [self._kill_worker, lambda: self._stop_below(1), lambda: self._stop_below(2), self._kill_customer]
        kinds += [self._kill_postgres, self._restart_postgres, self._stop_postgres]
        if self._large.links is not None:
            kinds += [
                lambda: self._partition(self._pick("c"), "->nats"),
                lambda: self._partition(self._pick("c"), "->postgres"),
                lambda: self._partition(self._pick("c"), f"->nats{self._random.randrange(3) + 1}"),
                lambda: self._partition(self._pick("n"), "->nats"),
                lambda: self._partition(self._client(), f"->nats{self._random.randrange(3) + 1}"),
                lambda: self._partition(self._pick("n"), f"->nats{self._random.randrange(3) + 1}"),
            ]
        kinds += [lambda whose=whose: self._fill_disk(whose) for whose in self._disks]  # type: ignore[misc]
        if self._large.seaweed is not None:
            kinds += [self._kill_s3, self._stop_s3, self._restart_s3]
        if self._large.links is not None:
            kinds += [lambda: self._skew(self._pick("c")), lambda: self._skew(self._pick("n"))]
        kinds.append(self._skew_customer)
        if not self._no_clocks:
            kinds += [self._skew_nats, self._skew_postgres]
            if self._large.seaweed is not None:
                kinds.append(self._skew_s3)
        return kinds

    def _pick(self, prefix: str) -> Part:
        names = sorted(n for n in self._large.parts if n.rstrip("0123456789") == prefix)
        return self._large.parts[self._random.choice(names)]

    def _client(self) -> str:
        names = sorted({name.partition("->")[0] for name in self._large.links.by_name} - set(self._large.parts))  # type: ignore[union-attr]
        return self._random.choice([name for name in names if name.startswith("client")])

    # ------------------------------------------------------------ processes

    def _kill_child(self, prefix: str) -> Fault | None:
        """SIGKILL of what a supervisor runs; it starts it again. (A node has no supervisor: its zygote dies.)"""
        part = self._pick(prefix)

        def kill() -> None:
            for child in part.children()[:1]:
                with contextlib.suppress(psutil.Error):
                    child.kill()

        return Fault(f"kill {_words(prefix, child=True)}", part.name, 0.0, kill, _nothing)

    def _power_loss(self, prefix: str) -> Fault:
        part = self._pick(prefix)
        return Fault(f"power loss of {_words(prefix)}", part.name, self._random.uniform(0.5, 3), part.kill, part.launch)

    def _stop(self, prefix: str) -> Fault:
        """SIGSTOP past its lease (or a node past its loss), then SIGCONT."""
        part = self._pick(prefix)
        seconds = self._random.uniform(3.0, 5.0) if prefix != "n" else self._random.uniform(4.0, 9.0)
        return Fault(
            f"stop {_words(prefix)}", part.name, seconds,
            lambda: part.signal_all(signal.SIGSTOP), lambda: part.signal_all(signal.SIGCONT),
        )  # fmt: skip

    def _restart(self, prefix: str) -> Fault:
        part = self._pick(prefix)
        return Fault(f"restart {_words(prefix)}", part.name, 0.0, part.end, part.launch)

    def _kill_worker(self) -> Fault | None:
        part = self._pick("n")

        def kill() -> None:
            for zygote in part.children():
                for worker in zygote.children()[:1]:
                    with contextlib.suppress(psutil.Error):
                        worker.kill()
                    return

        return Fault("kill a worker", part.name, 0.0, kill, _nothing)

    def _stop_below(self, depth: int) -> Fault:
        """SIGSTOP of a zygote (1) or a worker (2) of a node, then SIGCONT: what it runs takes longer."""
        part = self._pick("n")
        stopped: list[psutil.Process] = []

        def stop() -> None:
            below = part.children()
            for _ in range(depth - 1):
                below = [child for process in below for child in _children_of(process)]
            for process in below[:1]:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
                    stopped.append(process)

        def go_on() -> None:
            for process in stopped:
                with contextlib.suppress(psutil.Error):
                    process.resume()

        what = "zygote" if depth == 1 else "worker"
        return Fault(f"stop a {what}", part.name, self._random.uniform(0.5, 2.0), stop, go_on)

    def _kill_customer(self) -> Fault:
        """SIGKILL of a script with all that it has begun; it is run again."""
        name = self._random.choice(self._customers.names())
        return Fault(
            "kill a customer", name, self._random.uniform(0.0, 2.0),
            lambda: self._customers.kill(name), lambda: self._customers.start_again(name),
        )  # fmt: skip

    def _kill_postgres(self) -> Fault:
        postgres = self._large.postgres
        assert postgres is not None
        return Fault(
            "power loss of PostgreSQL", "postgres", self._random.uniform(0.2, 1.5), postgres.kill, postgres.launch
        )

    def _restart_postgres(self) -> Fault:
        postgres = self._large.postgres
        assert postgres is not None
        return Fault("restart PostgreSQL", "postgres", 0.0, postgres.stop, postgres.launch)

    def _stop_postgres(self) -> Fault:
        postgres = self._large.postgres
        assert postgres is not None
        return Fault(
            "stop PostgreSQL", "postgres", self._random.uniform(0.5, 2.5),
            lambda: postgres.pause(True), lambda: postgres.pause(False),
        )  # fmt: skip

    def _restart_s3(self) -> Fault:
        seaweed = self._large.seaweed
        assert seaweed is not None
        return Fault("restart S3", "s3", 0.0, seaweed.end, seaweed.relaunch)

    def _kill_s3(self) -> Fault:
        seaweed = self._large.seaweed
        assert seaweed is not None
        return Fault("power loss of S3", "s3", self._random.uniform(0.5, 3), seaweed.kill, seaweed.relaunch)

    def _stop_s3(self) -> Fault:
        """It takes connections, and answers nothing."""
        seaweed = self._large.seaweed
        assert seaweed is not None
        return Fault(
            "stop S3", "s3", self._random.uniform(2, 5), lambda: seaweed.pause(True), lambda: seaweed.pause(False)
        )

    # ------------------------------------------------------------ links and disks

    def _partition(self, part: Part | str, what: str) -> Fault | None:
        links = self._large.links
        assert links is not None
        prefix = (part if isinstance(part, str) else part.name) + what
        kind = "client" if isinstance(part, str) else _words(part.name.rstrip("0123456789"))
        end = what.removeprefix("->").rstrip("0123456789")
        there = "PostgreSQL" if end == "postgres" else "a NATS server" if what[-1].isdigit() else "all NATS servers"
        return Fault(
            f"partition of {kind} from {there}", prefix, self._random.uniform(2.0, 5.0),
            lambda: links.cut(prefix), lambda: links.cut(prefix, False),
        )  # fmt: skip

    def _skew(self, part: Part) -> Fault:
        """The wall clock of all its processes jumps by up to an hour, and back again."""
        by_s = self._skewed_by_s()
        return Fault(
            f"skewed clock of {_words(part.name.rstrip('0123456789'))}", part.name, self._random.uniform(3.0, 6.0),
            lambda: part.set_clock(by_s), lambda: part.set_clock(0),
        )  # fmt: skip

    def _skew_customer(self) -> Fault:
        name, by_s = self._random.choice(self._customers.names()), self._skewed_by_s()
        return Fault(
            "skewed clock of a customer", name, self._random.uniform(3.0, 6.0),
            lambda: self._customers.set_clock(name, by_s), lambda: self._customers.set_clock(name, 0),
        )  # fmt: skip

    def _skew_nats(self) -> Fault:
        part, by_s = self._pick("nats"), self._skewed_by_s()

        def skew(offset_s: int) -> None:
            set_clock([process.pid for process in part.tree()], offset_s)

        return Fault(
            "skewed clock of NATS server", part.name, self._random.uniform(3.0, 6.0),
            lambda: skew(by_s), lambda: skew(0),
        )  # fmt: skip

    def _skew_postgres(self) -> Fault:
        postgres, by_s = self._large.postgres, self._skewed_by_s()
        assert postgres is not None
        return Fault(
            "skewed clock of PostgreSQL", "postgres", self._random.uniform(3.0, 6.0),
            lambda: postgres.set_clock(by_s), lambda: postgres.set_clock(0),
        )  # fmt: skip

    def _skew_s3(self) -> Fault:
        """By an hour it refuses whatever is signed with the right time."""
        seaweed, by_s = self._large.seaweed, self._skewed_by_s()
        assert seaweed is not None
        return Fault(
            "skewed clock of S3", "s3", self._random.uniform(3.0, 6.0),
            lambda: seaweed.set_clock(by_s), lambda: seaweed.set_clock(0),
        )  # fmt: skip

    def _skewed_by_s(self) -> int:
        return self._random.choice((-1, 1)) * self._random.choice((10, 300, 3600))

    def _fill_disk(self, whose: str) -> Fault:
        disk = self._disks[whose]
        filler = disk / "filler"

        def fill() -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))

        def free() -> None:
            filler.unlink(True)
            postgres = self._large.postgres
            if whose == "PostgreSQL" and postgres is not None and not postgres.is_running:
                postgres.launch()  # it gives up where it cannot even write what it has to recover

        return Fault(f"full disk of {whose}", str(disk), self._random.uniform(2, 4), fill, free)


def _children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:
        return []


def _words(prefix: str, child: bool = False) -> str:
    return {"c": "coordinator", "nats": "NATS server", "n": "zygote" if child else "node"}[prefix]


def small_disk(folder: Path, megabytes: int) -> Path | None:
    """A file system of that size, or None where none can be made."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "fallow-chaos", str(folder)], capture_output=True
    )
    return folder if made.returncode == 0 else None


def remove_disk(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)
