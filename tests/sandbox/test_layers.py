"""Each wall taken away in turn: an attack that failed must then succeed, or the wall would be for nothing."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fallow.model.lending import SandboxSettings
from fallow.sandbox import bubblewrap, podman
from fallow.sandbox.bubblewrap import BubblewrapSandbox
from fallow.sandbox.gvisor import GvisorSandbox
from fallow.sandbox.podman import PodmanSandbox
from fallow.sandbox.protocol import Limits, Mount, Sandbox

from .boxes import WITHIN_S, Box
from .conftest import working
from .test_kernel import attempt
from .test_reach import Listeners

SMALL = Limits(memory_bytes=96 << 20, processes=16, disk_bytes=8 << 20)


def _filter(box: Box) -> bool:
    return "alg" in attempt(box, ["alg"]) or "netlink" in attempt(box, ["netlink"])


def _trace(box: Box) -> bool:
    return "ptrace own child" in attempt(box, ["ptrace own child"])


def _wrong_mount(box: Box) -> bool:
    """A folder that slipped in by a mistake of the mounts, beside what was meant."""
    slipped = Path(tempfile.mkdtemp(prefix="fallow-slipped-"))
    (slipped / "secret").write_text("canary")
    slipped.chmod(0o755)
    view: Any = bubblewrap
    kept = view.bwrap_arguments
    view.bwrap_arguments = lambda *given: ["--ro-bind", str(slipped), "/srv", *kept(*given)]
    try:
        return "canary" in box.run("say(open('/srv/secret').read())").out
    finally:
        view.bwrap_arguments = kept
        shutil.rmtree(slipped)


def _wrong_mount_of_podman(box: Box) -> bool:
    """The same."""
    slipped = Path(tempfile.mkdtemp(prefix="fallow-slipped-"))
    (slipped / "secret").write_text("canary")
    slipped.chmod(0o755)
    view: Any = podman
    kept = view.podman_arguments

    def arguments(*given: object) -> list[str]:
        made: list[str] = kept(*given)
        at = made.index("--mount")
        return [*made[:at], "--mount", f"type=bind,src={slipped},dst=/srv,ro=true", *made[at:]]

    view.podman_arguments = arguments
    try:
        return "canary" in box.run("say(open('/srv/secret').read())").out
    finally:
        view.podman_arguments = kept
        shutil.rmtree(slipped)


def _slipped_descriptor(box: Box) -> bool:
    """One that bubblewrap was handed by a mistake of the start, and nobody named."""
    secret = box.folder / "secret"
    secret.write_text("canary")
    leaked = os.open(secret, os.O_RDONLY)
    view: Any = bubblewrap._Start
    kept = view._listener
    view._listener = lambda start: (leaked,)
    try:
        done = box.run(
            "for number in range(3, 300):\n"
            "    try: say(repr(os.pread(number, 100, 0)))\n    except OSError: pass\nsay('end')"
        )
    finally:
        view._listener = kept
        os.close(leaked)
    assert "end" in done.out, done.log
    return "canary" in done.out


def _sockets(box: Box) -> bool:
    done = box.run(
        "for _ in range(6):\n    if os.fork() == 0:\n        held = []\n        try:\n"
        "            while len(held) < 300: held.append(socket.socketpair())\n        except OSError: pass\n"
        "        time.sleep(600)\ntime.sleep(2.5); say('all')",
        Limits(memory_bytes=256 << 20, processes=16, disk_bytes=8 << 20),
    )
    return "all" in done.out


def _network(box: Box) -> bool:
    listeners = Listeners(box.folder)
    listeners.open()
    try:
        box.run(listeners.code())
        # One's own datagram comes after any that the attacker sent.
        family, kind, address = listeners.addresses["udp"]  # type: ignore[misc]
        with socket.socket(family, kind) as own:
            own.sendto(b"own", address)
        deadline = time.monotonic() + WITHIN_S
        while ("udp", b"own") not in listeners.datagrams:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return ("udp", b"hello") in listeners.datagrams
    finally:
        listeners.close()
        (box.folder / "bus").unlink()


def _memory_of_all(box: Box) -> bool:
    """Each process within the limit, all together above it."""
    done = box.run(
        "pids = []\nfor _ in range(4):\n    r, w = os.pipe(); pid = os.fork()\n    if pid == 0:\n"
        "        held = b'x' * (60 << 20); os.write(w, b'1'); time.sleep(600)\n"
        "    os.close(w); os.read(r, 1); pids.append(pid)\n"
        "say(str(sum(os.waitpid(pid, os.WNOHANG)[0] == 0 for pid in pids)))",
        SMALL,
    )
    return done.out.strip() == "4"


def _memory_in_time(box: Box) -> bool:
    done = box.run(
        "for _ in range(4):\n    r, w = os.pipe(); pid = os.fork()\n    if pid == 0:\n"
        "        held = b'x' * (60 << 20); os.write(w, b'1'); time.sleep(600)\n"
        "    os.close(w); os.read(r, 1)\n"
        "time.sleep(2.5); say('all')",
        SMALL,
    )
    return "all" in done.out


def _descriptors(box: Box) -> bool:
    done = box.run(
        "held = []\ntry:\n    while len(held) < 8000: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: os.close(held.pop())\nos.close(held.pop()); say(str(len(held)))"
    )
    return int(done.out) > 4096


def _root_written(box: Box) -> bool:
    return "write the root" in attempt(box, ["write the root"])


def _namespaces(box: Box) -> bool:
    return "user namespace" in attempt(box, ["user namespace"])


def _disk(box: Box) -> bool:
    done = box.run(
        "for n in range(24):\n    with open(f'f{n}', 'wb') as file: file.write(b'x' * (1 << 20))\n"
        "    time.sleep(0.05)\nsay('all')",
        SMALL,
    )
    return "all" in done.out


def _temporary_filled(box: Box) -> bool:
    done = box.run(
        "with open('/tmp/big', 'wb') as file:\n    for n in range(16): file.write(b'x' * (1 << 20)); file.flush()\n"
        "say('all')",
        SMALL,
    )
    return "all" in done.out


def _others_seen(box: Box) -> bool:
    return "other processes of the host" in attempt(box, ["other processes of the host"])


def _home_read(box: Box) -> bool:
    """What any user of the machine may read; not below /tmp, which is the sandbox's own in any case."""
    home = Path(tempfile.mkdtemp(prefix="fallow-home-", dir="/var/tmp"))
    (home / "secret").write_text("canary")
    home.chmod(0o755)
    try:
        return "canary" in box.run(f"say(open({str(home / 'secret')!r}).read())").out
    finally:
        shutil.rmtree(home)


def _roots_file_read(box: Box) -> bool:
    """A file that only the agent's own user may read, in a folder that is shown."""
    shown = box.folder / "shown"
    shown.mkdir(exist_ok=True)
    (shown / "secret").write_text("canary")
    (shown / "secret").chmod(0o600)
    mounts = (Mount(str(box.folder / "scratch"), writable=True), Mount(str(shown), "/data"))
    return "canary" in box.run("say(open('/data/secret').read())", mounts=mounts).out


def _renamed(box: Box) -> bool:
    return "rename the host" in attempt(box, ["rename the host"])


# The attack; what is taken away; what else must be away so that the wall stands alone before it.
Walls = dict[str, tuple[Callable[[Box], bool], set[str], set[str]]]
WALLS: Walls = {
    "processes": (_others_seen, {"processes"}, set()),
    "mounts": (_home_read, {"mounts"}, {"landlock"}),
    "identity": (_roots_file_read, {"identity"}, set()),
    "capabilities": (_renamed, {"capabilities"}, {"identity", "seccomp", "userns"}),
    "seccomp": (_filter, {"seccomp"}, set()),
    "seccomp, of tracing": (_trace, {"seccomp"}, set()),
    "landlock": (_wrong_mount, {"landlock"}, set()),
    "network": (_network, {"network"}, set()),
    "cgroups": (_memory_of_all, {"cgroups"}, {"watch"}),
    "watch of memory": (_memory_in_time, {"watch"}, {"cgroups"}),
    "rlimits": (_descriptors, {"rlimits"}, set()),
    "bounds": (_root_written, {"bounds"}, {"landlock"}),
    "userns": (_namespaces, {"userns"}, {"seccomp"}),
    "descriptors": (_slipped_descriptor, {"descriptors"}, set()),
    "watch of sockets": (_sockets, {"watch"}, set()),
    "watch of disk": (_disk, {"watch"}, set()),
}

# What gVisor's kernel answers with our limits and filter, and what the host holds around it.
GVISOR_WALLS: Walls = {
    "seccomp": (_trace, {"seccomp"}, set()),
    "network": (_network, {"network"}, set()),
    "cgroups": (_memory_of_all, {"cgroups"}, {"watch"}),
    "watch of memory": (_memory_in_time, {"watch"}, {"cgroups"}),
    "rlimits": (_descriptors, {"rlimits"}, set()),
    "bounds": (_temporary_filled, {"bounds"}, {"rlimits"}),
    "watch of disk": (_disk, {"watch"}, set()),
}


# Beneath podman's own.
PODMAN_WALLS: Walls = {
    "seccomp": (_filter, {"seccomp"}, set()),
    "landlock": (_wrong_mount_of_podman, {"landlock"}, set()),
    "network": (_network, {"network"}, {"landlock"}),
    "cgroups": (_memory_of_all, {"cgroups"}, {"watch"}),
    "watch of memory": (_memory_in_time, {"watch"}, {"cgroups"}),
    "rlimits": (_descriptors, {"rlimits"}, set()),
    "bounds": (_temporary_filled, {"bounds"}, {"rlimits"}),
    "watch of disk": (_disk, {"watch"}, set()),
    "watch of sockets": (_sockets, {"watch"}, set()),
}


def _judge(wall: str, walls: Walls, made: Callable[[frozenset[str]], Sandbox], tmp_path: Path) -> None:
    attack, removed, alone = walls[wall]
    if wall == "cgroups" and BubblewrapSandbox().place() is None:
        pytest.skip("no control group can be made here: rlimits and the watch are in force anyway")
    if "identity" in removed | alone and os.geteuid() != 0:
        pytest.skip("the agent is no root: its sandboxes have its own user, without capabilities")
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    assert not attack(Box(made(frozenset(alone)), tmp_path / "with"))
    assert attack(Box(made(frozenset(alone | removed)), tmp_path / "without"))


@pytest.mark.slow
@pytest.mark.parametrize("wall", WALLS)
def test_without_its_wall_the_attack_succeeds(wall: str, tmp_path: Path) -> None:
    working("bubblewrap")
    _judge(wall, WALLS, BubblewrapSandbox, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("wall", PODMAN_WALLS)
def test_without_its_wall_in_podman_the_attack_succeeds(wall: str, tmp_path: Path) -> None:
    working("podman")
    settings = SandboxSettings(backend="podman")
    _judge(wall, PODMAN_WALLS, lambda without: PodmanSandbox(settings, without), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("wall", GVISOR_WALLS)
def test_without_its_wall_in_gvisor_the_attack_succeeds(wall: str, tmp_path: Path) -> None:
    kept = working("gvisor")
    assert isinstance(kept, GvisorSandbox)
    _judge(wall, GVISOR_WALLS, kept.without_also, tmp_path)
