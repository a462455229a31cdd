"""Attacks on what is the owner's: files, environment, descriptors, neighbours on the machine and in the network.

Judged by canaries on the host: a secret that must not come out, a file that must stay as it was, a listener that must
not be spoken to.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .boxes import Box

SECRET = "canary-4f1d9c77"

STEAL = """
import glob
def look(path):
    try:
        if os.path.isdir(path):
            say(repr(os.listdir(path)))
        else:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            say(repr(os.read(fd, 1 << 16)))
            os.close(fd)
    except OSError as error:
        print(path, error)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Readable and writable by all, and on the way to it too: only the sandbox stands before it."""
    home = Path(tempfile.mkdtemp(prefix="fallow-home-"))
    (home / ".ssh").mkdir(parents=True)
    for path in (home / ".ssh" / "id_ed25519", home / "node.key"):
        path.write_text(SECRET)
        path.chmod(0o666)
    for folder in (home, home / ".ssh"):
        folder.chmod(0o777)
    yield home
    shutil.rmtree(home)


def test_home_and_keys_cannot_be_read_by_any_way_in(jail: Box, home: Path) -> None:
    done = jail.run(
        STEAL + f"home = {str(home)!r}\n"
        "ways = ['', '/proc/1/root', '/proc/self/root', '/proc/self/cwd/../..', '/proc/2/root/..',"
        " '/proc/1/cwd', '/proc/thread-self/root', '/proc/self/fd/0/..', '/../..',"
        " '/oldroot', '/newroot', '/dev/fd/..']\n"
        "for way in ways:\n"
        "    for file in ('', '/.ssh', '/.ssh/id_ed25519', '/node.key'):\n"
        "        look(way + home + file)\n"
        "os.symlink(home + '/node.key', 'link'); look('link')\n"
        "for pid in os.listdir('/proc'):\n"
        "    if pid.isdigit():\n"
        "        look(f'/proc/{pid}/environ'); look(f'/proc/{pid}/mountinfo')\n"
        "        for fd in glob.glob(f'/proc/{pid}/fd/*'): look(fd)\n"
        "say('done')"
    )
    assert "done" in done.out, done.log
    assert SECRET not in done.out + done.log
    assert "id_ed25519" not in done.out


def test_home_cannot_be_written_nor_linked(jail: Box, home: Path) -> None:
    done = jail.run(
        f"home = {str(home)!r}\n"
        "for action in (lambda: open(home + '/node.key', 'w').write('owned'), lambda: os.unlink(home + '/node.key'),"
        " lambda: open(home + '/.ssh/authorized_keys', 'w').write('owned'),"
        " lambda: os.link(home + '/node.key', 'hard'), lambda: os.rename(home + '/node.key', 'moved'),"
        " lambda: os.rename('out', home + '/new')):\n"
        "    try: action()\n    except OSError as error: print(error)\n"
        "say('done')"
    )
    assert "done" in done.out, done.log
    assert (home / "node.key").read_text() == SECRET
    assert sorted(os.listdir(home)) == [".ssh", "node.key"]
    assert os.listdir(home / ".ssh") == ["id_ed25519"]
    assert not (done.scratch / "hard").exists()


def test_the_agents_environment_and_descriptors_stay_outside(
    jail: Box, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FALLOW_TOKEN", SECRET)
    leaked = os.open(home / "node.key", os.O_RDONLY)
    folder = os.open(home, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    os.set_inheritable(folder, True)
    try:
        done = jail.run(
            STEAL + "say(repr(dict(os.environ)))\n"
            "for number in range(3, 300):\n"
            "    try: say(repr(os.pread(number, 1000, 0)))\n    except OSError: pass\n"
            "    try: say(repr(os.listdir(number)))\n    except OSError: pass\n"
            "for pid in os.listdir('/proc'):\n    if pid.isdigit(): look(f'/proc/{pid}/environ')\n"
            "say('done')"
        )
    finally:
        os.close(leaked)
        os.close(folder)
    assert "done" in done.out, done.log
    assert SECRET not in done.out + done.log
    assert "node.key" not in done.out + done.log


def test_system_files_of_the_host_are_not_those_inside(jail: Box) -> None:
    done = jail.run(
        STEAL + "for path in ('/etc/shadow', '/etc/passwd', '/etc/hostname', '/root', '/home', '/var', '/sys/class',"
        " '/run', '/boot', '/etc/machine-id'): look(path)\nsay(socket.gethostname()); say('done')"
    )
    assert "done" in done.out, done.log
    for line in Path("/etc/passwd").read_text().splitlines():
        if line.startswith(("daemon:", "bin:", "sys:")):
            assert line not in done.out, "the host's own list of users"
    assert socket.gethostname() not in done.out.split("\n")
    machine_id = Path("/etc/machine-id")
    if machine_id.exists() and machine_id.read_text().strip():
        assert machine_id.read_text().strip() not in done.out


# ------------------------------------------------ neighbours


_SERIAL = itertools.count()


class Listeners:
    """Of every kind that a machine has, on the host. `heard` names those that somebody spoke to."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[str] = []
        self.datagrams: list[tuple[str, bytes]] = []
        self.addresses: dict[str, object] = {}
        self._sockets: list[socket.socket] = []
        self._folder = folder
        self._unique = f"{os.getpid()}-{next(_SERIAL)}"

    def open(self) -> None:
        self._add("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self._add("tcp-all", socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0))
        self._add("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        with contextlib.suppress(OSError):
            self._add("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))
            self._add("udp6", socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0))
        self._add("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0fallow-{self._unique}")
        self._add("x11", socket.AF_UNIX, socket.SOCK_STREAM, f"\0/tmp/.X11-unix/X{self._unique}")
        self._add("bus", socket.AF_UNIX, socket.SOCK_STREAM, str(self._folder / "bus"))
        os.chmod(self._folder / "bus", 0o777)

    def _add(self, name: str, family: int, kind: int, address: object) -> None:
        listener = socket.socket(family, kind)
        listener.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            listener.listen(4)
        self._sockets.append(listener)
        self.addresses[name] = (int(family), int(kind), listener.getsockname())
        threading.Thread(target=self._hear, args=(name, listener, kind), daemon=True).start()

    def _hear(self, name: str, listener: socket.socket, kind: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                if kind == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    self.datagrams.append((name, listener.recv(100)))
                self.heard.append(name)

    def close(self) -> None:
        for listener in self._sockets:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def try_all(self) -> None:
        """From the host, so that a silent test is not a deaf one."""
        exec(self.code(), {"socket": socket, "say": lambda text: None, "print": lambda *words: None})

    def code(self) -> str:
        return (
            f"addresses = {self.addresses!r}\n"
            "for name, (family, kind, address) in addresses.items():\n"
            "    try:\n"
            "        s = socket.socket(family, kind); s.settimeout(2)\n"
            "        if kind == 1: s.connect(address)\n"
            "        else: s.sendto(b'hello', address)\n"
            "    except OSError as error: print(name, error)\n"
            "say('done')\n"
        )


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[Listeners]:
    made = Listeners(tmp_path)
    made.open()
    yield made
    made.close()


def heard_soon(listeners: Listeners, names: set[str]) -> bool:
    done = threading.Event()
    for _ in range(600):
        if names <= set(listeners.heard):
            return True
        done.wait(0.01)
    return False


def test_no_neighbour_on_the_machine_is_reached(jail: Box, listeners: Listeners) -> None:
    done = jail.run(listeners.code())
    assert "done" in done.out, done.log
    assert listeners.heard == []
    listeners.try_all()
    assert heard_soon(listeners, set(listeners.addresses)), "the listeners themselves are deaf"


def test_no_packet_and_no_name_leaves(jail: Box) -> None:
    done = jail.run(
        "for address in ('1.1.1.1', '192.168.1.1', '10.0.0.1', '169.254.169.254', '224.0.0.1', '255.255.255.255'):\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    try: s.sendto(b'x', (address, 53)); say('sent ' + address)\n    except OSError as error: print(error)\n"
        "try: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('2606:4700:4700::1111', 53));"
        " say('sent 6')\n"
        "except OSError as error: print(error)\n"
        "try: socket.getaddrinfo('example.com', 80); say('resolved')\n"
        "except OSError as error: print(error)\nsay('done')"
    )
    assert done.out.split() == ["done"], done.out + done.log
