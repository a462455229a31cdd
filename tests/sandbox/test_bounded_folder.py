"""Folders that are file systems of their own: full is full, whatever a program does, and nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.sandbox.bounded_folder import BYTES_PER_FILE, BoundedFolder, NoBoundedFolder
from fallow.sandbox.protocol import Limits, Mount

from .boxes import SMALL, WITHIN_S, Box

SIZE = 32 << 20

FLOODS = {
    "named files": "n = 0\nwhile True:\n    n += 1\n    with open(f'f{n}', 'wb', 0) as file: file.write(piece)\n",
    "unlinked files": "while True:\n    file = open('gone', 'wb', 0); os.unlink('gone'); held.append(file)\n"
    "    assert file.write(piece) == len(piece)\n",
    "empty files": "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'w').close()\n",
    "one file": "with open('f', 'wb', 0) as file:\n    while True: assert file.write(piece) == len(piece)\n",
    "mappings": "import mmap\nn = 0\nwhile True:\n    n += 1\n    fd = os.open(f'f{n}', os.O_RDWR | os.O_CREAT)\n"
    "    os.posix_fallocate(fd, 0, len(piece)); m = mmap.mmap(fd, len(piece)); os.close(fd); m.write(piece)\n",
}
_FLOOD = """
import errno
os.chdir('/bounded')
piece, held = b'x' * (1 << 20), []
try:
{attack}
except AssertionError: pass
except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EFBIG): raise
about = os.statvfs('.')
os.chdir({scratch!r})
say(f'{{about.f_bfree * about.f_bsize}} {{about.f_ffree}}')
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[BoundedFolder]:
    made = make(tmp_path)
    yield made
    made.close()
    wait_until_gone(tmp_path)


def make(parent: Path, size: int = SIZE) -> BoundedFolder:
    """Skips where the machine cannot have it."""
    try:
        return BoundedFolder(parent, size)
    except NoBoundedFolder as error:
        pytest.skip(f"no bounded folder here: {error}")


def loops(parent: Path) -> list[str]:
    """Loop devices with a file below the folder behind them."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if path.read_text().startswith(str(parent)):
                found.append(path.parent.parent.name)
        except OSError:
            continue
    return found


def wait_until_gone(parent: Path) -> None:
    deadline = time.monotonic() + WITHIN_S
    while loops(parent):
        assert time.monotonic() < deadline, "a loop device is left"
        time.sleep(0.005)


def shown(box: Box, folder: BoundedFolder) -> tuple[Mount, ...]:
    """What a program of the box sees: it, at /bounded, and its own folder."""
    scratch = box.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    bounded = Mount(folder.path, "/bounded", writable=True, bounded=folder.device)
    return Mount(str(scratch), writable=True), bounded


@pytest.mark.parametrize("kind", FLOODS)
def test_full_is_full_and_the_program_goes_on(jail: Box, folder: BoundedFolder, kind: str) -> None:
    attack = "".join(f"    {line}\n" for line in FLOODS[kind].splitlines())
    # The watch would end it a hundred times over: it does not look here.
    limits = Limits(memory_bytes=192 << 20, processes=32, disk_bytes=SIZE)
    done = jail.run(
        _FLOOD.format(attack=attack, scratch=str(jail.folder / "scratch")), limits, mounts=shown(jail, folder)
    )
    assert done.status == 0, done.log
    free_bytes, free_files = (int(word) for word in done.out.split())
    assert min(free_bytes >> 20, free_files) <= 1
    held = os.fstatvfs(folder.descriptor)
    assert held.f_blocks * held.f_frsize <= SIZE
    assert held.f_files <= SIZE // BYTES_PER_FILE + 64


def test_what_is_written_is_read_again_within_little_memory(bubble: Box, tmp_path: Path) -> None:
    folder = make(tmp_path, 128 << 20)
    code = (
        "import hashlib\nos.chdir('/bounded'); wrote = hashlib.sha256(); read = hashlib.sha256()\n"
        "with open('big', 'wb', 0) as file:\n"
        "    for n in range(96): piece = os.urandom(1 << 20); wrote.update(piece); file.write(piece)\n"
        "    os.fsync(file.fileno())\n"
        "with open('big', 'rb') as file:\n    while piece := file.read(1 << 20): read.update(piece)\n"
        f"os.chdir({str(tmp_path / 'scratch')!r}); say(str(wrote.digest() == read.digest()))"
    )
    try:
        done = bubble.run(code, Limits(memory_bytes=32 << 20, processes=8), mounts=shown(bubble, folder))
        assert done.out.strip() == "True", done.log
    finally:
        folder.close()


def test_freed_blocks_go_back_to_the_machine(bubble: Box, folder: BoundedFolder, tmp_path: Path) -> None:
    code = (
        "os.chdir('/bounded')\nwith open('big', 'wb') as file: file.write(b'x' * (16 << 20)); os.fsync(file.fileno())\n"
        "os.chdir({scratch!r}); say('written')\nwhile not os.path.exists('go'): time.sleep(0.005)\n"
        "os.unlink('/bounded/big'); fd = os.open('/bounded', os.O_RDONLY); os.fsync(fd)"
    )
    before = folder.held_bytes
    scratch = tmp_path / "scratch"
    running = bubble.start(code.format(scratch=str(scratch)), SMALL, mounts=shown(bubble, folder))
    try:
        deadline = time.monotonic() + WITHIN_S
        while not (scratch / "out").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        most = folder.held_bytes
        (scratch / "go").touch()
        assert running.wait(WITHIN_S) == 0
    finally:
        running.close()
    os.fsync(folder.descriptor)
    assert most > 16 << 20
    assert folder.held_bytes < before + (4 << 20)


def test_the_machine_does_not_see_it(folder: BoundedFolder) -> None:
    assert folder.path not in Path("/proc/self/mountinfo").read_text()
    assert not os.path.exists(folder.path)
    assert os.fstat(folder.descriptor).st_dev == folder.device


def test_a_plain_user_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoBoundedFolder, match="not root"):
        BoundedFolder(tmp_path, SIZE)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("for root alone")
    monkeypatch.setattr("fallow.sandbox.bounded_folder._PATH", "/nowhere")
    with pytest.raises(NoBoundedFolder, match="apt install e2fsprogs"):
        BoundedFolder(tmp_path, SIZE + 4096)


_AGENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.sandbox.boxes import Box
from tests.sandbox.test_bounded_folder import make, shown
from fallow.sandbox.bubblewrap import BubblewrapSandbox
folder = Path(sys.argv[2])
box = Box(BubblewrapSandbox(), folder)
running = box.start("open('/bounded/file', 'w').write('x' * 9999); time.sleep(600)", mounts=shown(box, make(folder)))
print('+', flush=True)
time.sleep(600)
"""


def test_a_killed_agent_leaves_none(bubble: Box, tmp_path: Path) -> None:
    make(tmp_path).close()
    command = [sys.executable, "-c", _AGENT, str(Path(__file__).parents[2]), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        try:
            assert agent.stdout.readline() == "+\n"
            assert loops(tmp_path)
        finally:
            agent.send_signal(signal.SIGKILL)
    wait_until_gone(tmp_path)
