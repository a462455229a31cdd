"""The command line of bubblewrap for a Program, as data."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from fallow.sandbox.launcher_code import BOOT
from fallow.sandbox.protocol import LISTENER_PORT, Mount, Program
from fallow.sandbox.system import LAUNCHER_FOLDER, USER_ID, SystemView, interpreter

HOSTNAME = "sandbox"
TMP_BYTES = 256 << 20
SHM_BYTES = 256 << 20
OPEN_FILES = 4096
OWNERS_OPEN_FILES = 512
"""Where the program has the owner's own user: descriptors on their way through sockets are counted by user, and who may
open fewer than those can send none. Most of the owner's programs may open 1024; a message takes 253, and there may be
two at once."""

Source = Callable[[str], str]
"""Where bwrap finds a path of the host."""


class Descriptors(NamedTuple):
    """-1: not used."""

    info: int
    block: int
    seccomp: int


def mount_target(mount: Mount) -> str:
    return mount.target or mount.source


def temporary_bytes(program: Program, most: int) -> int:
    """Size of a file system in memory: no more than what the program may hold of disk, nor a quarter of its memory."""
    sizes = [most]
    sizes += [program.limits.disk_bytes] if program.limits.disk_bytes else []
    sizes += [program.limits.memory_bytes // 4] if program.limits.memory_bytes else []
    return max(1 << 20, min(sizes))


def bound_paths(program: Program, view: SystemView) -> list[str]:
    """All that is bound from the host, as `source` of bwrap_arguments is asked for it."""
    mounts = [os.path.realpath(mount.source) for mount in program.mounts]
    return [*view.bound, *mounts]


def bwrap_arguments(
    program: Program,
    view: SystemView,
    descriptors: Descriptors,
    source: Source,
    made: Callable[[str], int],
    without: frozenset[str] = frozenset(),
) -> list[str]:
    """The options of bwrap. `made` gives a descriptor that holds the content of a file."""
    arguments = ["--unshare-user", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if "processes" not in without:
        arguments.append("--unshare-pid")
    if "network" not in without and not program.network:
        arguments.append("--unshare-net")
    if "userns" not in without:
        arguments.append("--disable-userns")
    if "capabilities" not in without:
        arguments += ["--uid", str(USER_ID), "--gid", str(USER_ID), "--cap-drop", "ALL"]
    else:
        arguments += ["--uid", "0", "--gid", "0", "--cap-add", "ALL"]
    arguments += ["--hostname", HOSTNAME, "--new-session", "--die-with-parent", "--clearenv"]
    arguments += ["--info-fd", str(descriptors.info), "--block-fd", str(descriptors.block)]
    if descriptors.seccomp >= 0:
        arguments += ["--seccomp", str(descriptors.seccomp)]
    arguments += ["--proc", "/proc"] if "processes" not in without else ["--ro-bind", "/proc", "/proc"]
    arguments += ["--dev", "/dev"]
    if "bounds" not in without:
        arguments += ["--size", str(temporary_bytes(program, SHM_BYTES)), "--perms", "1777", "--tmpfs", "/dev/shm"]
        arguments += ["--size", str(temporary_bytes(program, TMP_BYTES))]
    arguments += ["--perms", "1777", "--tmpfs", "/tmp"]
    for path in view.bound:
        arguments += _bind(path, path, False, source)
    for target, path in view.links:
        arguments += ["--symlink", target, path]
    for path, content in view.made:
        arguments += ["--perms", "0444", "--ro-bind-data", str(made(content)), path]
    if "mounts" in without:
        arguments += ["--bind", "/var", "/var"]
    # Beside Landlock's rules, so that the probe sees whether they are in force.
    arguments += ["--dir", "/run"]
    for mount in program.mounts:
        arguments += _bind(os.path.realpath(mount.source), mount_target(mount), mount.writable, source)
    for device in program.devices:
        arguments += ["--dev-bind", device, device]
    if "bounds" not in without:
        arguments += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*arguments, "--chdir", program.cwd]


def _bind(host: str, inside: str, writable: bool, source: Source) -> list[str]:
    return ["--bind" if writable else "--ro-bind", source(host), inside]


def launcher_command(status: int, plan: int) -> list[str]:
    return [interpreter(), "-I", "-S", "-c", BOOT, str(status), str(plan)]


def launcher_plan(
    program: Program,
    view: SystemView,
    memory_bounded: bool,
    without: frozenset[str] = frozenset(),
    owners_user: bool = False,
) -> dict[str, object]:
    """What the launcher is to do. `memory_bounded`: by a control group; address space then need not be.
    `owners_user`: the program runs as the agent's own user."""
    limits: dict[str, int] = {}
    if "rlimits" not in without:
        # Where the agent is an ordinary user these are also bounds of the owner's own programs, which share them; and
        # what the owner may (players' and musicians' accounts may take the processor for themselves) work may not.
        limits = {"nofile": OWNERS_OPEN_FILES if owners_user else OPEN_FILES}
        limits |= {"memlock": 1 << 16, "msgqueue": 1 << 16, "sigpending": 1024}
        limits |= {"rtprio": 0, "nice": 0}
        # Of 1, not of 0: the kernel then does not start the machine's collector of crashes either.
        limits["core"] = 1
        if program.limits.processes:
            limits["nproc"] = program.limits.processes
        if program.limits.disk_bytes:
            limits["fsize"] = program.limits.disk_bytes
        if program.limits.memory_bytes and not memory_bounded and not program.devices:
            # GPU drivers reserve far more address space than they use.
            limits["as"] = program.limits.memory_bytes
    rules: dict[str, object] | None = None
    if "landlock" not in without:
        readable = [*view.bound, "/etc", "/proc", LAUNCHER_FOLDER, "/dev"]
        readable += [mount_target(mount) for mount in program.mounts]
        writable = ["/tmp", "/dev/shm", *(mount_target(mount) for mount in program.mounts if mount.writable)]
        devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts")]
        rules = {
            "readable": readable,
            "writable": [*writable, "/proc/self"],
            "devices": [*devices, *program.devices],
            "network": program.network or program.listener >= 0,
        }
    return {
        "argv": list(program.argv),
        "environment": program.environment,
        "descriptors": list(program.descriptors if "descriptors" not in without else range(3, OPEN_FILES)),
        "listener": (program.listener, LISTENER_PORT) if program.listener >= 0 else None,
        "limits": limits,
        "landlock": rules,
        **({"first_to_end": True} if "rlimits" not in without else {}),
    }
