"""Attacks on what the kernel counts by user or for the whole machine: descriptors that are sent, watches, buffers.

Judged by what other programs of the same user can still do (`tests/sandbox/test_plain_user.py` runs this as an ordinary
user, whose sandboxes have the owner's user), and by what is left to the machine.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.sandbox.kernel_objects import EPOLLS_MOST, PIPES_MOST, SOCKETS_MOST
from fallow.sandbox.protocol import Limits

from .boxes import WITHIN_S, Box

LIMITS = Limits(memory_bytes=512 << 20, processes=48, disk_bytes=16 << 20)

IN_MANY = """
def in_many(count, work):
    for _ in range(count):
        if os.fork() == 0:
            held = []
            try: work(held)
            except OSError: pass
            time.sleep(600)
"""
SEND = """
pairs = []
try:
    while len(pairs) < 300:
        a, b = socket.socketpair(); pairs.append((a, b)); a.setblocking(False)
        try:
            for _ in range(40): socket.send_fds(a, [b'x'], [0] * 250)
        except BlockingIOError: pass
except OSError as error: print(error)
say('sent'); time.sleep(600)
"""
HOARD = {
    "pipes": "def work(held):\n    while True: held.append(os.pipe())\n",
    "epoll": "import select\ndef work(held):\n    some = [os.eventfd(0) for _ in range(200)]\n"
    "    while True:\n        held.append(select.epoll())\n"
    "        for one in some: held[-1].register(one, 1)\n",
    "sockets": "def work(held):\n    while True: held.append(socket.socketpair())\n",
    "sockets that were sent away": "def work(held):\n    a, b = socket.socketpair()\n    while True:\n"
    "        held.append(socket.socketpair())\n        if len(held) > 100:\n            for one in held:\n"
    "                socket.send_fds(a, [b'x'], [one[0].fileno(), one[1].fileno()])\n"
    "            held.clear()\n",
}
WORDS = {
    "pipes": f"more than {PIPES_MOST} pipes",
    "epoll": f"more than {EPOLLS_MOST} epoll",
    "sockets": f"more than {SOCKETS_MOST} sockets",
    "sockets that were sent away": f"more than {SOCKETS_MOST} sockets",
}


@pytest.fixture
def as_most_programs() -> Iterator[None]:
    """The owner's programs may open as many descriptors as nearly every login allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("as_most_programs")
def test_the_owners_programs_can_still_pass_descriptors(jail: Box) -> None:
    """As every window under Wayland does for what it draws."""
    running = jail.start(SEND, LIMITS)
    try:
        report = jail.folder / "scratch" / "out"
        deadline = time.monotonic() + WITHIN_S
        while not report.exists() and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(ours, [b"x"], [0])
            assert len(socket.recv_fds(theirs, 1, 1)[1]) == 1
    finally:
        running.close()


@pytest.mark.parametrize("kind", HOARD)
def test_who_hoards_what_a_user_has_few_of_is_ended(bubble: Box, kind: str) -> None:
    code = f"{IN_MANY}\n{HOARD[kind]}\nin_many(12, work)\ntime.sleep(600)"
    by_user = os.geteuid() != 0 or bubble.sandbox.place() is None  # type: ignore[attr-defined]
    if not by_user and not kind.startswith("sockets"):
        pytest.skip("the sandbox's user is its own, and a control group counts what the kernel holds for it")
    running = bubble.start(code, LIMITS)
    try:
        assert running.wait(WITHIN_S) == -signal.SIGKILL
    finally:
        running.close()
    assert WORDS[kind] in running.why  # type: ignore[attr-defined]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    assert os.write(writing, bytes(1 << 20)) == 65536, "pipes of this user have their usual size"
    with select.epoll() as watch:
        watch.register(reading, select.EPOLLIN)
    os.close(reading)
    os.close(writing)


def test_buffers_of_sockets_stay_as_the_machine_has_them(jail: Box) -> None:
    """Who asks for more is told that it was done."""
    done = jail.run(
        "a, b = socket.socketpair()\nbefore = a.getsockopt(1, 7), a.getsockopt(1, 8)\n"
        "for which in (7, 8): a.setsockopt(1, which, 1 << 22)\n"
        "a.setsockopt(1, 2, 1)  # SO_REUSEADDR, which is as it was\n"
        "say(repr(((a.getsockopt(1, 7), a.getsockopt(1, 8)) == before, a.getsockopt(1, 2))))",
        LIMITS,
    )
    assert done.out.strip() == "(True, 1)", done.log


def test_nobodys_files_are_held_up_by_leases(bubble: Box, tmp_path: Path) -> None:
    """A lease on a file of the owner's would hold up who opens it for writing."""
    done = bubble.run(
        "import fcntl\nopen('own', 'w').close()\nfd = os.open('own', os.O_RDONLY)\n"
        "for call in ((fcntl.F_SETLEASE, fcntl.F_RDLCK), (1026, 1), (1031, 1 << 20)):\n"
        "    try: fcntl.fcntl(os.pipe()[1] if call[0] == 1031 else fd, *call); say('done')\n"
        "    except OSError as error: say(error.strerror)\n"
        "fcntl.fcntl(fd, fcntl.F_GETFD); say('end')",
        LIMITS,
    )
    said = done.out.split("\n")
    assert said[3] == "end", done.log
    if os.geteuid() != 0:
        assert said[:3] == ["Operation not permitted"] * 3
