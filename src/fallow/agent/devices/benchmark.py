"""A short benchmark: what one slot, the memory, the disk and the GPUs do, so that the pool need not believe a model's
name. The agent runs it in its idle time as a program of its own at lowest priority (`measured`), keeps the answer by
hardware for a week, and asks the GPUs through programs of their own.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from fallow.agent.limits.priority import give_way
from fallow.model.node import Device, NodeSpec

REFERENCE_HASH_BYTES_PER_S = 7.2e9
REFERENCE_FLOPS = 4.25e7
"""The reference machine, whose speed is 1: one core of a virtual machine on an Intel Xeon with AVX-512 and AMX, clocked
at 2.6 GHz, with CPython 3.11: bytes that BLAKE3 hashes in a second, and operations of a matrix product in Python."""

FRESH_S = 7 * 24 * 3600.0
TIMEOUT_S = 60.0
START_LIMIT_S = 600.0
"""Where all processors are busy, a program that gives way takes its time to start; it measures by its best moments."""
DISK_BYTES_LIMIT = 128 << 20
DISK_SHARE = 4
"""No more than one part in so many of what is free is written, and that for a moment."""
CHUNK = 1 << 20


class Scores(Struct, frozen=True):
    """What was measured; 0: could not be."""

    speed: float
    """Of one slot, relative to the reference machine: the geometric mean of hashing and floating point."""
    hash_bytes_per_s: float = 0.0
    flops: float = 0.0
    memory_bytes_per_s: float = 0.0
    """Copied by one thread."""
    disk_bytes_per_s: float = 0.0
    """Written and synced."""
    gpus: dict[str, float] = {}
    """Gflop/s of a product of 32-bit matrices, by uuid."""
    gpu_words: dict[str, str] = {}
    """Why a GPU was not measured."""


def run_benchmark(
    seconds: float = 1.0, folder: Path | None = None, gpus: Sequence[Device] = (), size: int = 0
) -> Scores:
    """Measure, in about so many seconds, and a few more for each GPU. folder: on the disk that counts (default: the
    system's for temporary files). size: of the GPUs' matrices, 0: large enough to fill one."""
    part = max(0.02, seconds / 4)
    hashed = _rate(part, _hash_once())
    flops = _rate(part, _multiply_once())
    memory = _rate(part, _copy_once())
    disk = disk_rate(folder or Path(tempfile.gettempdir()), part)
    found: dict[str, float] = {}
    words: dict[str, str] = {}
    for device in gpus:
        speed, why = gpu_speed(device, size)
        if why:
            words[device.uuid] = why
        else:
            found[device.uuid] = speed
    speed = math.sqrt(hashed / REFERENCE_HASH_BYTES_PER_S * flops / REFERENCE_FLOPS)
    return Scores(speed, hashed, flops, memory, disk, found, words)


def _rate(seconds: float, once: Callable[[], int]) -> float:
    """Work a second in the best of several rounds: what else runs on the machine must not look like slowness."""
    stop = time.perf_counter() + seconds
    best = 0.0
    while True:
        began = time.perf_counter()
        done = once()
        now = time.perf_counter()
        best = max(best, done / max(1e-9, now - began))
        if now >= stop:
            return best


def _hash_once() -> Callable[[], int]:
    from blake3 import blake3

    block = bytes(CHUNK)

    def once() -> int:
        for _ in range(8):
            blake3(block, max_threads=1).digest()
        return 8 * len(block)

    return once


def _multiply_once(n: int = 32) -> Callable[[], int]:
    """A matrix product in plain Python: what a task's own code runs at."""
    left = [array.array("d", [1.0 + row * column for column in range(n)]) for row in range(n)]
    right = [array.array("d", [1.0 / (1 + row + column) for row in range(n)]) for column in range(n)]

    def once() -> int:
        total = 0.0
        for row in left:
            for column in right:
                for a, b in zip(row, column, strict=True):
                    total += a * b
        if not math.isfinite(total):
            raise ArithmeticError("a product of finite matrices is not finite")
        return 2 * n**3

    return once


def _copy_once() -> Callable[[], int]:
    source = bytearray(os.urandom(CHUNK) * 32)
    target = bytearray(len(source))

    def once() -> int:
        target[:] = source
        return len(source)

    return once


def disk_rate(folder: Path, seconds: float) -> float:
    """Bytes a second that this folder's disk takes, synced; 0 where little can be written: tasks may need the room."""
    block = os.urandom(CHUNK)
    try:
        most = min(DISK_BYTES_LIMIT, shutil.disk_usage(folder).free // DISK_SHARE)
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            written = 0
            while written + 4 * len(block) <= most and time.perf_counter() - began < seconds:
                for _ in range(4):
                    file.write(block)
                written += 4 * len(block)
                file.flush()
                os.fsync(file.fileno())
            return written / max(1e-9, time.perf_counter() - began)
    except OSError:
        return 0.0


def gpu_speed(device: Device, size: int = 0) -> tuple[float, str]:
    """(Gflop/s, why it could not be measured), by a program of its own."""
    if device.vendor != "nvidia":
        return 0.0, "only NVIDIA's GPUs are measured"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": device.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if size:
        environment["FALLOW_PRODUCT_SIZE"] = str(size)
    command = [sys.executable, "-m", "fallow.agent.devices.product"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False)
        answer = json.loads(done.stdout)
        return (0.0, str(answer["error"])) if "error" in answer else (float(answer["gflops"]), "")
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        return 0.0, f"the program that measures it failed: {type(error).__name__}"


# ---------------------------------------------------------------- kept for a week


def fingerprint(spec: NodeSpec) -> str:
    """Changes with the hardware, the GPUs' drivers and the interpreter."""
    devices = [(d.model, d.memory_bytes, d.uuid, d.driver) for d in spec.devices]
    parts = (_cpu_model(), spec.cpu_count, spec.platform, platform.python_version(), devices)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


class _Kept(Struct, frozen=True):
    fingerprint: str
    at_unix_s: float
    scores: Scores


def kept_scores(home: Path, spec: NodeSpec, now_unix_s: float) -> Scores | None:
    """What was measured of this very hardware within the last week."""
    try:
        kept = msgspec.json.decode((home / "benchmark.json").read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError):
        return None
    fresh = 0 <= now_unix_s - kept.at_unix_s < FRESH_S and kept.fingerprint == fingerprint(spec)
    return kept.scores if fresh else None


def keep_scores(home: Path, spec: NodeSpec, scores: Scores, now_unix_s: float) -> None:
    target = home / "benchmark.json"
    fresh = target.with_suffix(f".{os.getpid()}")
    try:
        fresh.write_bytes(msgspec.json.encode(_Kept(fingerprint(spec), now_unix_s, scores)))
        fresh.replace(target)
    except OSError:
        fresh.unlink(missing_ok=True)


async def measured(home: Path, spec: NodeSpec, seconds: float = 1.0) -> Scores | None:
    """Kept scores, or new ones of a program at lowest priority; None where it fails."""
    scores = kept_scores(home, spec, time.time())
    if scores is not None:
        return scores
    command = [sys.executable, "-m", "fallow.agent.devices.benchmark", str(home), str(seconds)]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None
    try:
        devices = msgspec.json.encode(spec.devices)
        async with asyncio.timeout(START_LIMIT_S + TIMEOUT_S * (1 + len(spec.devices))):
            out, _ = await process.communicate(devices)
        scores = msgspec.json.decode(out, type=Scores)
    except (TimeoutError, msgspec.MsgspecError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    keep_scores(home, spec, scores, time.time())
    return scores


def main() -> None:
    """`python -m fallow.agent.devices.benchmark FOLDER SECONDS`, with the devices as JSON on its input."""
    give_way(0)
    devices = msgspec.json.decode(sys.stdin.buffer.read() or b"[]", type=tuple[Device, ...])
    scores = run_benchmark(float(sys.argv[2]), Path(sys.argv[1]), devices)
    sys.stdout.buffer.write(msgspec.json.encode(scores))


if __name__ == "__main__":
    main()
