"""Work that hides what it holds from the one who measures it, who is mostly the same user and no more than that."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from fallow.sandbox.folders import DEPTH_LIMIT, remove_tree, usage_bytes
from fallow.sandbox.protocol import Limits
from fallow.sandbox.watch import Watch

from .boxes import WITHIN_S, Box
from .conftest import working

LIMITS = Limits(memory_bytes=192 << 20, processes=32, disk_bytes=16 << 20)
FILL = """
def fill(path=''):
    held = []
    for n in range(1000):
        file = open(f'{path}f{n}', 'wb'); held.append(file)
        file.write(b'x' * (1 << 20)); file.flush(); time.sleep(0.004)
def fill_unlinked():
    held = []
    for n in range(1000):
        file = open('gone', 'wb'); os.unlink('gone'); held.append(file)
        file.write(b'x' * (1 << 20)); file.flush(); time.sleep(0.004)
"""
# (A program that may be run and not read is one that its own user may not look into.)
HIDDEN = {
    "a closed folder": "os.mkdir('d'); os.chmod('d', 0o300); fill('d/')",
    "a folder that is closed again and again": "import threading\nos.mkdir('d')\n"
    "threading.Thread(target=fill, args=('d/',)).start()\nwhile True: os.chmod('d', 0o300)",
    "its own folder": "os.chmod('.', 0o300); fill()",
    "folders of long names": "for _ in range(40): os.mkdir('n' * 250); os.chdir('n' * 250)\nfill()",
    "very many folders": f"for _ in range({DEPTH_LIMIT + 50}): os.mkdir('n'); os.chdir('n')\nfill()",
    "a process whose first thread has ended": "import threading\nthreading.Thread(target=fill_unlinked).start()\n"
    "libc.syscall(93 if os.uname().machine == 'aarch64' else 60, 0)",
    "a program that cannot be read": "import shutil\nshutil.copyfile(sys.executable, 'python')\n"
    "os.chmod('python', 0o111)\nos.execv('./python', ['p', '-I', '-S', '-c', PREAMBLE + FILL + 'fill_unlinked()'])",
}


def _code(kind: str) -> str:
    from .boxes import PREAMBLE

    return f"PREAMBLE, FILL = {PREAMBLE!r}, {FILL!r}\n{FILL}\n{HIDDEN[kind]}\n"


@pytest.mark.parametrize("kind", HIDDEN)
def test_files_that_are_hidden_count_or_end_it(bubble: Box, kind: str) -> None:
    running = bubble.start(_code(kind), LIMITS)
    try:
        assert running.wait(WITHIN_S) == -signal.SIGKILL
    finally:
        running.close()
    assert running.why  # type: ignore[attr-defined]
    remove_tree(bubble.folder / "scratch")
    assert not (bubble.folder / "scratch").exists()


SENT = """
import mmap
def mapped():
    held = []
    for n in range(200):
        fd = os.open('gone', os.O_RDWR | os.O_CREAT); os.unlink('gone')
        os.write(fd, b'x' * (1 << 20)); held.append(mmap.mmap(fd, 4096, mmap.MAP_PRIVATE)); os.close(fd)
def sent():
    held = [socket.socketpair() for _ in range(8)]
    for n in range(200):
        fd = os.open('gone', os.O_RDWR | os.O_CREAT); os.unlink('gone')
        os.write(fd, b'x' * (1 << 20)); socket.send_fds(held[n % 8][0], [b'x'], [fd]); os.close(fd)
"""


@pytest.mark.parametrize("kind", ["mapped", "sent"])
def test_files_without_name_and_descriptor_end_it(bubble: Box, kind: str) -> None:
    running = bubble.start(f"{SENT}\n{kind}(); say('all'); time.sleep(600)", LIMITS)
    try:
        assert running.wait(WITHIN_S) == -signal.SIGKILL
    finally:
        running.close()
    assert running.why  # type: ignore[attr-defined]


def test_what_others_write_on_the_disk_ends_nobody(jail: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that processes share has no name either (and gVisor's kernel keeps all of its programs' in such)."""
    measure, deep_looks, lost = Watch._measure, [0], itertools.count(0, 8 << 20)

    def counted(self: Watch, deep: bool) -> None:
        measure(self, deep)
        deep_looks[0] += deep and self._free_first - self._free_then > 2 * LIMITS.disk_bytes

    monkeypatch.setattr(Watch, "_measure", counted)
    monkeypatch.setattr(Watch, "_free_bytes", lambda self: (1 << 40) - next(lost))
    code = "import mmap\nheld = mmap.mmap(-1, 1 << 20); held[0] = 1\nwhile not os.path.exists('go'): time.sleep(0.01)"
    running = jail.start(code, LIMITS)
    try:
        deadline = time.monotonic() + WITHIN_S
        while deep_looks[0] < 2 and not running.why and time.monotonic() < deadline:
            time.sleep(0.01)
        (jail.folder / "scratch" / "go").touch()
        assert running.wait(WITHIN_S) == 0
    finally:
        running.close()
    assert running.why == ""
    assert deep_looks[0] >= 2


@pytest.mark.parametrize("name", ["bubblewrap", "podman"])
def test_files_in_memory_are_counted_by_number(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(gVisor's kernel keeps them in memory of its own, which is bounded.)"""
    monkeypatch.setattr("fallow.sandbox.watch.TMP_INODES", 300)
    code = "for n in range(400): open(f'/tmp/f{n}', 'w').close()\ntime.sleep(600)"
    running = Box(working(name), tmp_path).start(code, LIMITS)
    try:
        assert running.wait(WITHIN_S) == -signal.SIGKILL
    finally:
        running.close()
    assert "more than 300 files in /tmp" in running.why  # type: ignore[attr-defined]


def test_the_kernel_ends_it_before_the_owners_programs(bubble: Box) -> None:
    done = bubble.run("say(open('/proc/self/oom_score_adj').read())\nopen('/proc/self/oom_score_adj', 'w').write('0')")
    assert done.out.strip() == "1000"
    if os.geteuid() != 0:
        assert "Permission" in done.log


def test_deep_trees_are_measured_and_removed_without_recursion(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    folder = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    with pytest.raises(Exception, match="folders more than"):
        usage_bytes(str(top))
    remove_tree(top)
    assert not top.exists()
