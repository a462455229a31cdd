"""What gVisor is told of one container: the options of its runner and the container's description, as data."""

from __future__ import annotations

import os

from fallow.sandbox.bwrap_arguments import HOSTNAME
from fallow.sandbox.container_root import ContainerRoot
from fallow.sandbox.identity import Identity
from fallow.sandbox.system import LAUNCHER_FOLDER, interpreter

PLATFORMS = ("systrap", "ptrace", "kvm")
"""How gVisor may catch system calls, in the order of trial: kvm needs a machine that is none itself, and hangs where
it does not work."""

_WANTED = {
    # Files that the agent hands in later are seen; nothing is kept in memory that was meant for the folder of results.
    "overlay2": "none",
    "file-access-mounts": "shared",
    "host-uds": "none",
    "host-fifo": "none",
    # Files of the host are opened by a process beside gVisor's kernel, not by the kernel that strangers talk to.
    "directfs": "false",
}


def known_options(words: str) -> frozenset[str]:
    """Names of the options that `runsc flags` lists."""
    lines = (line.strip() for line in words.splitlines() if line.startswith("  -"))
    return frozenset(line.split()[0].lstrip("-") for line in lines)


def known_platforms(words: str) -> tuple[str, ...]:
    """Those that `runsc flags` offers, in the order of trial."""
    lines = words.splitlines()
    at = next((place for place, line in enumerate(lines) if line.split()[:1] in (["-platform"], ["--platform"])), -1)
    offered = lines[at + 1] if 0 <= at < len(lines) - 1 else ""
    return tuple(name for name in PLATFORMS if name in offered)


def runsc_options(known: frozenset[str], platform: str, state: str, network: str = "none") -> list[str]:
    """What stands before the command. `known`: of this version. `state`: a folder."""
    options = [f"--root={state}", f"--platform={platform}", f"--network={network}", "--ignore-cgroups"]
    return options + [f"--{name}={value}" for name, value in _WANTED.items() if name in known]


def container(
    root: ContainerRoot, folder: str, identity: Identity, without: frozenset[str] = frozenset()
) -> dict[str, object]:
    """The description in OCI's terms. `folder`: the root. `without`: as of the sandbox."""
    none: list[str] = []
    mounts: list[dict[str, object]] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    for target, size in (("/tmp", root.tmp_bytes), ("/dev/shm", root.shm_bytes)):
        options = ["nosuid", "nodev", "mode=1777", *([f"size={size}"] if "bounds" not in without else [])]
        mounts.append({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
    for bind in root.binds:
        options = ["bind", "private", "rw" if bind.writable else "ro"]
        mounts.append(
            {"destination": bind.target, "type": "bind", "source": os.path.realpath(bind.source), "options": options}
        )
    spaces = ["pid", "ipc", "uts", "mount", *(["network"] if "network" not in without else [])]
    return {
        "ociVersion": "1.0.2",
        "hostname": HOSTNAME,
        "root": {"path": folder, "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": identity.user, "gid": identity.group},
            "args": [interpreter(), "-I", "-S", f"{LAUNCHER_FOLDER}/launcher.py", "0"],
            "env": [],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), none),
            "noNewPrivileges": True,
        },
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in spaces]},
    }
