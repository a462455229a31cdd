"""What the building blocks cost on this machine: the limits that no system on them can beat."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.processes import free_port, touch_free_memory


def _median_ms(run: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


def _echo(end: Any) -> None:
    while (data := end.recv_bytes()) != b"":
        end.send_bytes(data)


def pipe_round_trip_ms() -> float:
    """100 bytes to another process and back over a Unix socket."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_echo, args=(theirs,), daemon=True)
    process.start()

    def run() -> None:
        ours.send_bytes(b"x" * 100)
        ours.recv_bytes()

    found = _median_ms(run, 3000)
    ours.send_bytes(b"")
    process.join()
    return found


_ANSWER = """
import asyncio, sys, nats
async def main():
    client = await nats.connect(sys.argv[1], token=sys.argv[2])
    async def answer(message):
        await client.publish(message.reply, message.data)
    await client.subscribe("echo", cb=answer)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def nats_request_ms() -> float:
    """Request and reply of 100 bytes through a NATS server, between two Python processes."""
    import nats

    beside = Path(sys.executable).with_name("nats-server")
    server = str(beside) if beside.exists() else shutil.which("nats-server")
    if server is None:
        raise FileNotFoundError("no nats-server")
    port, token = free_port(), secrets.token_hex(8)
    url = f"nats://127.0.0.1:{port}"
    command = [server, "-a", "127.0.0.1", "-p", str(port), "--auth", token]
    server_process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    echo: subprocess.Popen[bytes] | None = None
    try:
        time.sleep(0.3)
        echo = subprocess.Popen([sys.executable, "-c", _ANSWER, url, token], stdout=subprocess.PIPE)
        assert echo.stdout is not None
        echo.stdout.readline()

        async def measure() -> float:
            client = await nats.connect(url, token=token)
            taken = []
            for _ in range(2000):
                start = time.perf_counter()
                await client.request("echo", b"x" * 100)
                taken.append(time.perf_counter() - start)
            await client.close()
            return statistics.median(taken) * 1e3

        return asyncio.run(measure())
    finally:
        for process in (echo, server_process):
            if process is not None:
                process.kill()
                process.wait()


def sqlite_commit_ms(folder: Path) -> float:
    """One durable transaction of one row of 100 bytes: WAL, synchronous FULL."""
    with sqlite3.connect(folder / "block.sqlite", isolation_level=None) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("pragma synchronous=full")
        database.execute("create table rows (id integer primary key, data blob)")

        def run() -> None:
            database.execute("begin immediate")
            database.execute("insert into rows (data) values (?)", (b"x" * 100,))
            database.execute("commit")

        found = _median_ms(run, 300)
    database.close()
    return found


def sync_ms(folder: Path) -> float:
    """fdatasync of an append of 4 KB."""
    descriptor = os.open(folder / "block.bin", os.O_WRONLY | os.O_CREAT)

    def run() -> None:
        os.write(descriptor, b"x" * 4096)
        os.fdatasync(descriptor)

    found = _median_ms(run, 300)
    os.close(descriptor)
    return found


def copy_gb_per_s() -> float:
    """memcpy of 256 MB that both sides have touched before."""
    source, target = bytearray(256 << 20), bytearray(256 << 20)
    view = memoryview(target)

    def run() -> None:
        view[:] = source

    run()
    return 256 * (1 << 20) / (_median_ms(run, 5) / 1e3) / 1e9


def file_write_gb_per_s(folder: Path) -> float:
    """Writing 256 MB into a new file (page cache, not synced)."""
    data = os.urandom(1 << 20) * 256

    def run() -> None:
        path = folder / "large.bin"
        path.write_bytes(data)
        path.unlink()

    run()
    return len(data) / (_median_ms(run, 5) / 1e3) / 1e9


def hash_gb_per_s() -> float:
    """BLAKE3 of 256 MB on one core."""
    import blake3

    data = bytearray(256 << 20)
    return len(data) / (_median_ms(lambda: blake3.blake3(data).digest(), 3) / 1e3) / 1e9


def interpreter_start_ms() -> float:
    """`python -c pass`."""
    return _median_ms(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), 10)


def print_blocks(console: Console, folder: Path | None = None) -> None:
    """Measure and print all of them."""
    table = Table(title="Building blocks on this machine")
    table.add_column("block")
    table.add_column("measured", justify="right")
    touch_free_memory(2 << 30)
    with tempfile.TemporaryDirectory(dir=folder or Path.cwd()) as name:
        place = Path(name)
        blocks: list[tuple[str, Callable[[], float], str]] = [
            ("pipe round trip, 100 B", pipe_round_trip_ms, "ms"),
            ("NATS request and reply, 100 B", nats_request_ms, "ms"),
            ("SQLite durable commit", lambda: sqlite_commit_ms(place), "ms"),
            ("fdatasync of 4 KB", lambda: sync_ms(place), "ms"),
            ("interpreter start", interpreter_start_ms, "ms"),
            ("memcpy", copy_gb_per_s, "GB/s"),
            ("BLAKE3", hash_gb_per_s, "GB/s"),
            ("file write, page cache", lambda: file_write_gb_per_s(place), "GB/s"),
        ]
        for title, measure, unit in blocks:
            try:
                table.add_row(title, f"{measure():.3g} {unit}")
            except (ImportError, OSError) as error:
                table.add_row(title, f"not measured: {error}")
    console.print(table)
