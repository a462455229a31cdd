"""python -m bench sandbox: what the sandbox costs over a plain process: time to start a program and a warm worker, and
CPU work inside; and how far above its limit of disk a program gets that writes as fast as it can."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from fallow.agent.confined import Confinement
from fallow.agent.zygote import start_zygote
from fallow.model.lending import SandboxSettings
from fallow.sandbox.choose import BACKENDS
from fallow.sandbox.protocol import Limits, Mount, Program, Sandbox
from fallow.sandbox.system import interpreter

START_LIMIT_MS = 50.0
WORK_LIMIT = 0.97
_WITHIN_S = 120.0

_READY = "open('ready', 'w').close()\nimport time\ntime.sleep(600)"
_WORK = """
import hashlib, time
begun = time.perf_counter()
total = 0
for number in range(1_500_000):
    total += number * number % 7
data = b'x' * 65536
for _ in range(3000):
    data = hashlib.sha256(data).digest() * 2048
words = {}
for number in range(300_000):
    words[str(number)] = number
open('took', 'w').write(str(time.perf_counter() - begun))
"""


def _program(folder: Path, code: str) -> Program:
    return Program(
        argv=(interpreter(), "-I", "-S", "-c", code),
        environment={},
        cwd=str(folder),
        mounts=(Mount(str(folder), writable=True),),
        limits=Limits(memory_bytes=1 << 30),
    )


def _start_ms(sandbox: Sandbox) -> float:
    """Until the program inside has written its first file."""
    with tempfile.TemporaryDirectory() as name:
        ready = Path(name) / "ready"
        begun = time.perf_counter()
        running = sandbox.start(_program(Path(name), _READY))
        while not ready.exists():
            time.sleep(0.0005)
        took = time.perf_counter() - begun
        running.close()
        return took * 1e3


_FLOODS = {
    "named files": """
import itertools, os
piece = b'x' * (8 << 20)
for number in itertools.count():
    file = os.open(f'f{number}', os.O_CREAT | os.O_WRONLY)
    for _ in range(4):
        os.write(file, piece)
    os.close(file)
""",
    "unlinked files": """
import os
piece, held = b'x' * (8 << 20), []
while True:
    held.append(os.open('f', os.O_CREAT | os.O_WRONLY))
    os.unlink('f')
    for _ in range(4):
        os.write(held[-1], piece)
""",
}
_FLOOD_LIMIT_BYTES = 256 << 20


def _flood(sandbox: Sandbox, code: str) -> tuple[float, float]:
    """(MB that the disk held at most above the limit, MB/s)."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        limits = Limits(memory_bytes=1 << 30, disk_bytes=_FLOOD_LIMIT_BYTES)
        before = least = _free_bytes(name)
        begun = time.perf_counter()
        running = sandbox.start(msgspec.structs.replace(_program(Path(name), code), limits=limits))
        with contextlib.closing(running):
            while running.poll() is None:
                least = min(least, _free_bytes(name))
                time.sleep(0.001)
            took = time.perf_counter() - begun
            least = min(least, _free_bytes(name))
        return (before - least - _FLOOD_LIMIT_BYTES) / 1e6, (before - least) / 1e6 / took


def _free_bytes(folder: str) -> int:
    status = os.statvfs(folder)
    return status.f_bfree * status.f_frsize


class _Deaf:
    """WorkerCallbacks of a worker that runs nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


async def _worker_ms(sandbox: Sandbox | None) -> float:
    """Until a first worker is forked, in a sandbox that was not there before; None: plain."""
    confinement = Confinement(sandbox, Limits(memory_bytes=1 << 30)) if sandbox is not None else None
    begun = time.perf_counter()
    zygote = await start_zygote(confinement=confinement)
    await zygote.start_worker(0, _Deaf())
    took = time.perf_counter() - begun
    await zygote.stop()
    return took * 1e3


def _work_s(sandbox: Sandbox) -> float:
    with tempfile.TemporaryDirectory() as name:
        running = sandbox.start(_program(Path(name), _WORK))
        with contextlib.closing(running):
            running.wait(_WITHIN_S)
        return float((Path(name) / "took").read_text())


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench sandbox", description=__doc__)
    parser.add_argument("--repeat", type=int, default=9, help="rounds, each backend in turn; medians count")
    parser.add_argument("--backends", default="", help="only these, with commas between")
    return parser


def main() -> int:
    given = arguments().parse_args()
    repeat, only = given.repeat, [name for name in given.backends.split(",") if name]
    plain = BACKENDS["process"](SandboxSettings())
    failed = False
    for name in [name for name in BACKENDS if name != "process" and (not only or name in only)]:
        sandbox = BACKENDS[name](SandboxSettings(backend=name))
        if not sandbox.probe().works:
            print(f"{name}: {sandbox.probe().words}")
            continue
        starts = [(_start_ms(plain), _start_ms(sandbox)) for _ in range(repeat)]
        workers = [(asyncio.run(_worker_ms(None)), asyncio.run(_worker_ms(sandbox))) for _ in range(repeat)]
        works = [(_work_s(plain), _work_s(sandbox)) for _ in range(repeat)]
        over, worker = (
            statistics.median(inside for _, inside in pairs) - statistics.median(outside for outside, _ in pairs)
            for pairs in (starts, workers)
        )
        share = statistics.median(outside for outside, _ in works) / statistics.median(inside for _, inside in works)
        print(f"{name}: start {over:.1f} ms over a plain process (limit {START_LIMIT_MS:g} ms)")
        print(f"{name}: a warm worker {worker:.1f} ms over a plain one (limit {START_LIMIT_MS:g} ms)")
        print(f"{name}: CPU work at {share:.1%} of a plain process (at least {WORK_LIMIT:.0%})")
        for kind, code in _FLOODS.items():
            floods = [_flood(sandbox, code) for _ in range(repeat)]
            over_mb = sorted(above for above, _ in floods)
            rate = statistics.median(rate for _, rate in floods)
            print(
                f"{name}: {kind} at {rate:.0f} MB/s: ended {statistics.median(over_mb):.0f} MB above the limit of "
                f"{_FLOOD_LIMIT_BYTES / 1e6:.0f} MB, at most {over_mb[-1]:.0f} MB"
            )
        failed |= name == "bubblewrap" and (max(over, worker) > START_LIMIT_MS or share < WORK_LIMIT)
    return int(failed)
