"""Each wall taken away in turn: an attack that failed must then succeed, or the wall would be for nothing."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fallow.sandbox import bubblewrap
from fallow.sandbox.bubblewrap import BubblewrapSandbox
from fallow.sandbox.gvisor import GvisorSandbox
from fallow.sandbox.protocol import Limits

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


# The attack; what is taken away; what else must be away so that the wall stands alone before it.
WALLS: dict[str, tuple[Callable[[Box], bool], set[str], set[str]]] = {
    "seccomp": (_filter, {"seccomp"}, set()),
    "seccomp, of tracing": (_trace, {"seccomp"}, set()),
    "landlock": (_wrong_mount, {"landlock"}, set()),
    "network": (_network, {"network"}, set()),
    "cgroups": (_memory_of_all, {"cgroups"}, {"watch"}),
    "watch of memory": (_memory_in_time, {"watch"}, {"cgroups"}),
    "rlimits": (_descriptors, {"rlimits"}, set()),
    "bounds": (_root_written, {"bounds"}, {"landlock"}),
    "userns": (_namespaces, {"userns"}, {"seccomp"}),
    "watch of disk": (_disk, {"watch"}, set()),
}

# What gVisor's kernel answers with our limits and filter, and what the host holds around it.
GVISOR_WALLS: dict[str, tuple[Callable[[Box], bool], set[str], set[str]]] = {
    "seccomp": (_trace, {"seccomp"}, set()),
    "network": (_network, {"network"}, set()),
    "cgroups": (_memory_of_all, {"cgroups"}, {"watch"}),
    "watch of memory": (_memory_in_time, {"watch"}, {"cgroups"}),
    "rlimits": (_descriptors, {"rlimits"}, set()),
    "bounds": (_temporary_filled, {"bounds"}, {"rlimits"}),
    "watch of disk": (_disk, {"watch"}, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("wall", WALLS)
def test_without_its_wall_the_attack_succeeds(wall: str, tmp_path: Path) -> None:
    working("bubblewrap")
    attack, removed, alone = WALLS[wall]
    if wall == "cgroups" and BubblewrapSandbox().place() is None:
        pytest.skip("no control group can be made here: rlimits and the watch are in force anyway")
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    assert not attack(Box(BubblewrapSandbox(frozenset(alone)), tmp_path / "with"))
    assert attack(Box(BubblewrapSandbox(frozenset(alone | removed)), tmp_path / "without"))


@pytest.mark.slow
@pytest.mark.parametrize("wall", GVISOR_WALLS)
def test_without_its_wall_in_gvisor_the_attack_succeeds(wall: str, tmp_path: Path) -> None:
    kept = working("gvisor")
    assert isinstance(kept, GvisorSandbox)
    attack, removed, alone = GVISOR_WALLS[wall]
    if wall == "cgroups" and BubblewrapSandbox().place() is None:
        pytest.skip("no control group can be made here: rlimits and the watch are in force anyway")
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    assert not attack(Box(kept.without_also(frozenset(alone)), tmp_path / "with"))
    assert attack(Box(kept.without_also(frozenset(alone | removed)), tmp_path / "without"))
