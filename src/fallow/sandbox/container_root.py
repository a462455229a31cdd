"""A root file system for containers: the host's programs and libraries, read only, and an /etc made for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from fallow.sandbox.bwrap_arguments import SHM_BYTES, TMP_BYTES, mount_target, temporary_bytes
from fallow.sandbox.egress import NAME_SERVERS
from fallow.sandbox.protocol import Program
from fallow.sandbox.sweep import own_folder
from fallow.sandbox.system import SystemView, launcher_files, python_prefixes, system_view

_FOLDERS = ("dev", "proc", "sys", "tmp", "etc", "run")


class Bind(NamedTuple):
    source: str
    target: str
    writable: bool


class ContainerRoot(NamedTuple):
    """`folder`: to be the root, removed by `remove`. Empty where an image or a folder of the owner's is the root."""

    folder: str
    view: SystemView
    binds: tuple[Bind, ...]
    tmp_bytes: int
    shm_bytes: int

    def remove(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def container_root(program: Program, hostname: str, rootfs: str = "") -> ContainerRoot:
    """`rootfs`: whatever stands in for the host's /usr, so that only the launcher and the program's mounts are bound.
    Raises OSError."""
    view = system_view(NAME_SERVERS if program.network else (), hostname)
    binds = [Bind(host, inside, False) for host, inside in launcher_files()]
    folder = ""
    if rootfs:
        binds += [Bind(prefix, prefix, False) for prefix in python_prefixes()]
    else:
        folder = own_folder("root-")
        os.chmod(folder, 0o755)
        for name in _FOLDERS:
            (Path(folder) / name).mkdir()
        # runc gives what it mounts there the permissions of what lies beneath.
        os.chmod(Path(folder) / "tmp", 0o1777)
        for target, path in view.links:
            os.symlink(target, folder + path)
        for path, content in view.made:
            (Path(folder) / path.lstrip("/")).write_text(content)
        binds += [Bind(path, path, False) for path in view.bound if not path.startswith("/sys/")]
    binds += [Bind(os.path.realpath(mount.source), mount_target(mount), mount.writable) for mount in program.mounts]
    # What the program asks for may be shown already, and a runner takes each place once.
    binds = list({bind.target: bind for bind in binds}.values())
    return ContainerRoot(
        folder, view, tuple(binds), temporary_bytes(program, TMP_BYTES), temporary_bytes(program, SHM_BYTES)
    )


def hidden_of_sys() -> list[str]:
    """All in /sys: what the machine is made of is not the program's business."""
    return [f"/sys/{name}" for name in sorted(os.listdir("/sys"))]
