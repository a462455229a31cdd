"""Attacks by quantity: forks, memory, files, descriptors, output. What is bounded is measured on the host."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fallow.sandbox.folders import ENTRY_BYTES, usage_bytes
from fallow.sandbox.protocol import Limits
from fallow.sandbox.tree import descendants
from fallow.sandbox.watch import LOG_BYTES

from .boxes import WITHIN_S, Box

LIMITS = Limits(memory_bytes=192 << 20, processes=32, disk_bytes=16 << 20)


def test_forks_stop_at_the_limit(jail: Box) -> None:
    running = jail.start(
        "n = 0\n"
        "while n < 500:\n"
        "    try:\n"
        "        if os.fork() == 0: time.sleep(600)\n"
        "    except OSError: break\n"
        "    n += 1\n"
        "say(str(n)); time.sleep(600)",
        LIMITS,
    )
    try:
        report = jail.folder / "scratch" / "out"
        deadline = time.monotonic() + WITHIN_S
        while not report.exists() or not report.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert 4 < int(report.read_text()) <= LIMITS.processes
        init = getattr(running, "init_pid", running.pid)
        # (gVisor: its kernel, what opens files for it, what it keeps in reserve, and two processes for each inside.)
        most = 2 * LIMITS.processes + 8 if jail.sandbox.name == "gvisor" else LIMITS.processes
        assert len(list(descendants(init))) <= most
    finally:
        running.close()


MEMORY = {
    "private": "held = []\nfor _ in range(64): held.append(bytearray(os.urandom(1 << 20) * 16))",
    "shared": "import mmap\nheld = []\nfor _ in range(64):\n"
    "    m = mmap.mmap(-1, 16 << 20); m.write(b'x' * (16 << 20)); held.append(m)",
    "memory files": "for _ in range(64):\n    fd = os.memfd_create('x')\n"
    "    for _ in range(16): os.write(fd, b'x' * (1 << 20))",
}


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_stops_at_the_limit(jail: Box, kind: str) -> None:
    done = jail.run(MEMORY[kind] + "\nsay('survived')", LIMITS)
    assert "survived" not in done.out
    assert done.status != 0


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm", "/", "/dev", "/run", "/etc"])
def test_file_systems_in_memory_are_bounded(jail: Box, place: str) -> None:
    done = jail.run(
        f"total = 0\ntry:\n    for n in range(200):\n        with open(f'{place}/flood{{n}}', 'wb') as file:\n"
        "            for _ in range(8):\n                file.write(b'x' * (1 << 20)); file.flush(); total += 1\n"
        "except OSError as error: print(error)\nsay(str(total))",
        Limits(memory_bytes=192 << 20, processes=32, disk_bytes=64 << 20),
    )
    written = int(done.out) if done.out else 0
    assert written <= 64, f"{written} MB"
    if place not in ("/tmp", "/dev/shm"):
        assert written == 0


FILES = {
    "one file": "with open('big', 'wb') as file:\n    while True: file.write(b'x' * (1 << 20)); file.flush()",
    "many files": "n = 0\nwhile True:\n    n += 1\n    with open(f'f{n}', 'wb') as file: file.write(b'x' * (1 << 20))\n"
    "    time.sleep(0.004)",
    "empty files": "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'w').close()",
    "unlinked files": "held = []\nwhile True:\n    file = open('gone', 'wb'); os.unlink('gone'); held.append(file)\n"
    "    file.write(b'x' * (1 << 20)); file.flush(); time.sleep(0.01)",
    "unlinked mappings": "import mmap\nheld = []\nwhile True:\n"
    "    fd = os.open('gone', os.O_RDWR | os.O_CREAT); os.unlink('gone')\n"
    "    os.ftruncate(fd, 1 << 20); m = mmap.mmap(fd, 1 << 20); os.close(fd)\n"
    "    m.write(b'x' * (1 << 20)); held.append(m)\n"
    "    time.sleep(0.01)",
}


@pytest.mark.parametrize("kind", FILES)
def test_the_folder_of_results_is_bounded(jail: Box, kind: str) -> None:
    done = jail.run(FILES[kind], LIMITS)
    assert done.status not in (None, 0)
    # Measured four times a second: what is written meanwhile comes on top.
    assert usage_bytes(str(done.scratch)) < 20 * LIMITS.disk_bytes
    if kind == "one file":
        assert (done.scratch / "big").stat().st_size <= LIMITS.disk_bytes


@pytest.mark.parametrize("kind", ["many files", "unlinked files", "unlinked mappings"])
def test_a_disk_that_fills_between_two_looks_is_seen(bubble: Box, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fallow.sandbox.watch.EVERY_S", 3600.0)
    assert bubble.run(FILES[kind], LIMITS).status == -signal.SIGKILL


def test_output_is_bounded_and_not_held_up(jail: Box) -> None:
    done = jail.run("for _ in range(64): os.write(1, b'x' * (1 << 20))\nsay('written')", LIMITS)
    assert "written" in done.out
    assert (jail.folder / "log").stat().st_size <= LOG_BYTES


def test_descriptors_and_cores_are_bounded(jail: Box) -> None:
    done = jail.run(
        "held = []\ntry:\n    while len(held) < 20000: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\ncount = len(held)\n"
        "for fd in held[-5:]: os.close(fd)\n"
        "say(f'{count} {resource.getrlimit(resource.RLIMIT_CORE)[1]}')",
        LIMITS,
    )
    count, core = (int(word) for word in done.out.split())
    assert count <= 4096
    assert core <= 1, "a core of one byte is none, and is not handed to the machine's collector either"


def test_why_it_ended_is_told(bubble: Box) -> None:
    running = bubble.start(FILES["many files"], LIMITS)
    assert running.wait(WITHIN_S) == -signal.SIGKILL
    running.close()
    assert "of the 17 MB of disk" in running.why  # type: ignore[attr-defined]


def test_usage_counts_blocks_and_does_not_follow_links(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_bytes(b"x" * 100_000)
    os.symlink("/usr", folder / "link")
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    used = usage_bytes(str(folder))
    assert 100_000 <= used < 100_000 + 8 * ENTRY_BYTES
    assert usage_bytes(str(folder), 50_000) <= used
