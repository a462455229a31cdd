"""Stand-in drivers: small shared libraries that answer from files, compiled once for a test run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import Struct

HERE = Path(__file__).parent
GIB = 1 << 30


def build_library(source: str, folder: Path, name: str) -> Path:
    """A shared library of that file name. Skips the test, aloud, where no C compiler can be had."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here: the stand-in for the driver cannot be built")
    target = folder / name
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, HERE / source], check=True)
    return target


class Card(Struct):
    uuid: str
    model: str = "NVIDIA GeForce RTX 4090"
    total: int = 24 * GIB
    free: int = 24 * GIB
    minor: int = 0
    heat: int = 40
    milliwatts: int = 50_000
    use: int = 0


class Process(Struct):
    gpu: int
    pid: int
    size: int
    use: int = 0


class Driver:
    """What the stand-in for NVML says from the next call on."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def say(self, cards: Sequence[Card], processes: Sequence[Process] = (), init: int = 0, hangs: bool = False) -> None:
        lines = ["driver 570.86", f"init {init}", f"hang {int(hangs)}"]
        lines += [f"gpu {c.uuid} {c.minor} {c.total} {c.free} {c.heat} {c.milliwatts} {c.use} {c.model}" for c in cards]
        lines += [f"proc {p.gpu} {p.pid} {p.size} {p.use}" for p in processes]
        fresh = self._state.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(self._state)
