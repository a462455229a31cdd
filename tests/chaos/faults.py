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

import psutil

from tests.chaos.parts import Large, Part


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


class Faults:
    """All that can be done to a pool here. `left_out`: what cannot, and why."""

    def __init__(self, large: Large, seed: int, small_disk: Path | None) -> None:
        self._large = large
        self._random = random.Random(seed)
        self._small_disk = small_disk
        self._bag: list[Callable[[], Fault | None]] = []
        self.left_out: list[str] = []
        if small_disk is None:
            why = "blobs are in S3" if large.seaweed else "no small file system can be made here (it needs root)"
            self.left_out.append(f"full disk: {why}")

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
        kinds += [self._kill_worker, self._kill_postgres, self._restart_postgres]
        if self._large.links is not None:
            kinds += [
                lambda: self._partition(self._pick("c"), "->nats"),
                lambda: self._partition(self._pick("c"), "->postgres"),
                lambda: self._partition(self._pick("n"), "->nats"),
                lambda: self._partition(self._client(), f"->nats{self._random.randrange(3) + 1}"),
                lambda: self._partition(self._pick("n"), f"->nats{self._random.randrange(3) + 1}"),
            ]
        if self._small_disk is not None:
            kinds.append(self._fill_disk)
        if self._large.seaweed is not None:
            kinds += [self._kill_s3, self._stop_s3]
        if self._large.links is not None:
            kinds += [lambda: self._skew(self._pick("c")), lambda: self._skew(self._pick("n"))]
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
        by_s = self._random.choice((-1, 1)) * self._random.choice((10, 300, 3600))
        return Fault(
            f"skewed clock of {_words(part.name.rstrip('0123456789'))}", part.name, self._random.uniform(3.0, 6.0),
            lambda: part.set_clock(by_s), lambda: part.set_clock(0),
        )  # fmt: skip

    def _fill_disk(self) -> Fault:
        disk = self._small_disk
        assert disk is not None
        filler = disk / "filler"

        def fill() -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))

        return Fault("full disk of blobs", str(disk), self._random.uniform(2, 4), fill, lambda: filler.unlink(True))


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
