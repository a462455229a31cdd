"""What a sandbox of workers sees of this machine, and how files leave it.

Inside: SCRATCH is the one folder that may be written, INPUTS holds what the agent hands in, PACKAGE is Fallow itself.
Nothing that comes out is taken for what it claims to be: it is opened without following links, and copied while its
digest is computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import logging
import os
import re
import shutil
import stat
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import blake3
import msgspec
from msgspec import Struct

import fallow
from fallow.agent.limits.writers import Writers
from fallow.model.tiers import Tier
from fallow.sandbox.folders import remove_tree
from fallow.sandbox.protocol import Limits, Mount
from fallow.sandbox.system import refuse_homes

if TYPE_CHECKING:
    from collections.abc import Callable

    from fallow.model.node import NodeSpec
    from fallow.sandbox.bounded_folder import BoundedFolder
    from fallow.sandbox.protocol import Sandbox

log = logging.getLogger("fallow.agent")

SCRATCH = "/scratch"
INPUTS = "/inputs"
PACKAGE = "/fallow-package"
_CODE = "/fallow-code"
"""Inside. (A path for imports must be a folder that may be listed, and hold nothing but Fallow.)"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_COPY_BYTES = 1 << 20
_ENVIRONMENT = ("bin", "lib", "lib64", "include", "share", "etc", "pyvenv.cfg")
"""Of a virtual environment: people keep other things beside them in its folder."""

BUILD_BYTES = 20 * 10**9


class Tampered(Exception):
    """What came out of a sandbox is not what it was said to be."""


class Confinement(Struct, frozen=True):
    """How this node keeps strangers' work from itself."""

    sandbox: Sandbox
    limits: Limits
    """Of one sandbox, which holds all workers of one job on this node."""
    network: bool = False
    """Jobs that ask for it reach public addresses."""
    least: Tier = Tier.ISOLATED
    """Of what runs here."""
    index_hosts: tuple[str, ...] = ()
    """As SandboxSettings has them."""
    build_bytes: int = BUILD_BYTES
    """What the build of one environment may hold on disk, with its downloads."""
    writers: Writers = msgspec.field(default_factory=Writers)

    def offered(self, spec: NodeSpec) -> NodeSpec:
        """The node as it offers itself with this: a GPU is one tenant's at a time."""
        return msgspec.structs.replace(
            spec,
            tier=int(self.sandbox.tier),
            least_tier=int(self.least),
            network=self.network,
            shares_gpus=False,
            devices=spec.devices if self.sandbox.probe().devices else (),
        )


class Confined:
    """The folders of one sandbox, below `folder` on the host."""

    def __init__(self, folder: Path, scratch_bytes: int = 0) -> None:
        """`scratch_bytes`: what SCRATCH may hold; it is then a file system of that size, where one can be had. Raises
        OSError."""
        self.folder = folder
        self.scratch = folder / "scratch"
        self.inputs = folder / "inputs"
        folder.mkdir(parents=True, mode=0o700)
        self.scratch.mkdir(mode=0o700)
        self.inputs.mkdir()
        package = folder / "package"
        package.mkdir()
        (package / "fallow").symlink_to(_CODE)
        for shown in (self.inputs, package):
            shown.chmod(0o755)  # the sandbox may run as another user
        self._exposing = threading.Lock()
        """Two workers may ask for the same thing at once, each in a thread of its own."""
        self._bounded = _bounded(folder, scratch_bytes) if scratch_bytes else None
        self._opening = threading.Lock()
        """The number of a folder that was closed may be another's already."""
        if self._bounded is not None:
            self._scratch_fd = os.dup(self._bounded.descriptor)
        else:
            self._scratch_fd = os.open(self.scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.on_close: Callable[[], None] = lambda: None
        # Kept open: results may still be on their way out when the sandbox has ended.
        _OPEN[str(self.scratch)] = self

    def mounts(self, python: str) -> tuple[Mount, ...]:
        """For workers of this interpreter."""
        package = str(Path(fallow.__file__).resolve().parent)
        shown = [Mount(folder) for folder in (*interpreter_folders(python), *user_packages(python))]
        return (
            *shown,
            Mount(package, _CODE),
            Mount(str(self.folder / "package"), PACKAGE),
            Mount(str(self.inputs), INPUTS),
            Mount(str(self.scratch), SCRATCH, writable=True)
            if self._bounded is None
            else Mount(self._bounded.path, SCRATCH, writable=True, bounded=self._bounded.device),
        )

    @property
    def is_bounded(self) -> bool:
        """SCRATCH is a file system of its own, which nobody sees on the machine."""
        return self._bounded is not None

    @property
    def held_bytes(self) -> int:
        """What such a file system takes of the machine's disk; 0 where it is none."""
        return self._bounded.held_bytes if self._bounded is not None and self._bounded.descriptor >= 0 else 0

    # ------------------------------------------------ in

    def expose(self, path: str, name: str) -> str:
        """Show a file of the agent, read only; returns its path inside. Raises OSError."""
        target = self.inputs / name
        with self._exposing:
            if not target.exists():
                _link_or_copy(path, str(target))
        return f"{INPUTS}/{name}"

    def expose_folder(self, path: str, name: str) -> str:
        """The same for a folder with all that is in it. Raises OSError."""
        target = self.inputs / name
        with self._exposing:
            if not target.exists():
                partial = self.inputs / f".{name}"
                shutil.copytree(path, partial, copy_function=_link_or_copy, symlinks=True, dirs_exist_ok=True)
                for parent, _, _ in os.walk(partial):
                    os.chmod(parent, 0o755)
                os.rename(partial, target)
        return f"{INPUTS}/{name}"

    def withdraw(self, name: str) -> None:
        """The file is not needed any more. Whoever has mapped it keeps it."""
        with contextlib.suppress(OSError):
            os.unlink(self.inputs / name)

    # ------------------------------------------------ out

    def open_scratch(self) -> int:
        """A descriptor of the folder, for the caller to close. Raises OSError where it is gone."""
        with self._opening:
            return os.dup(self._scratch_fd)

    def result_path(self, inside: str) -> str | None:
        """What names a result file on the host, for `open_folder_of`; None for any path but one in SCRATCH."""
        folder, _, name = inside.rpartition("/")
        return str(self.scratch / name) if folder == SCRATCH and _NAME.match(name) else None

    def take(self, inside: str, into: str, digest: str, size: int) -> None:
        """Copy a file that the sandbox wrote to the host path `into`. Raises Tampered where it is no plain file of
        this size and digest; OSError where it cannot be copied, and then nothing is left of it."""
        relative = os.path.relpath(inside, SCRATCH) if inside.startswith(SCRATCH + "/") else ""
        if not relative:
            raise Tampered(f"{inside!r} is not in the folder that tasks may write")
        folder = self.open_scratch()
        try:
            copy_checked(folder, relative, into, digest, size)
        finally:
            os.close(folder)

    def remove(self, name: str) -> None:
        """Remove a folder of the scratch folder."""
        with contextlib.suppress(OSError):
            folder = self.open_scratch()
            try:
                remove_tree(Path(f"/proc/self/fd/{folder}") / name)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Remove all of it."""
        self.on_close()
        _OPEN.pop(str(self.scratch), None)
        with self._opening:
            if self._scratch_fd >= 0:
                os.close(self._scratch_fd)
                self._scratch_fd = -1
        if self._bounded is not None:
            self._bounded.close()
        remove_tree(self.folder)


_OPEN: dict[str, Confined] = {}
"""By the scratch folder's path on the host, where a bounded one is not to be seen."""


def open_folder_of(result: str) -> int:
    """A descriptor, for the caller to close, of the folder of a file that `Confined.result_path` named. Raises
    FileNotFoundError where it is gone."""
    confined = _OPEN.get(os.path.dirname(result))
    try:
        if confined is not None:
            return confined.open_scratch()
    except OSError:
        pass
    raise FileNotFoundError(f"the folder of {result} is gone with its sandbox")


def _bounded(folder: Path, size: int) -> BoundedFolder | None:
    from fallow.sandbox.bounded_folder import BoundedFolder, NoBoundedFolder

    try:
        return BoundedFolder(folder, size)
    except NoBoundedFolder as error:
        _tell_once(str(error))
        return None


@functools.cache
def _tell_once(why: str) -> None:
    log.info("what tasks may write is watched and not bounded by a file system of its own: %s", why)


def interpreter_folders(python: str) -> tuple[str, ...]:
    """What an interpreter needs that is not the system's: the parts of its environment, and what that is built on.
    Raises SandboxUnavailable where that holds the home of the agent's user."""
    found: list[str] = []
    path = python
    for _ in range(16):  # each link on the way to the real program
        prefix = os.path.dirname(os.path.dirname(path))
        if prefix != "/" and not f"{prefix}/".startswith("/usr/"):
            if os.path.exists(f"{prefix}/pyvenv.cfg"):
                refuse_homes(prefix)
                found += [part for name in _ENVIRONMENT if os.path.exists(part := f"{prefix}/{name}")]
            elif glob.glob(f"{glob.escape(prefix)}/lib/python3*/os.py"):
                refuse_homes(prefix)
                found.append(prefix)
        if not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return tuple(dict.fromkeys(found))


def user_packages(python: str) -> tuple[str, ...]:
    """Where the agent's interpreter finds what workers import, if that is no part of it: `pip install --user`."""
    if python != sys.executable:
        return ()
    import cloudpickle

    shown = ("/usr", *interpreter_folders(python))
    files = (module.__file__ or "" for module in (msgspec, cloudpickle, blake3))
    folders = dict.fromkeys(os.path.dirname(os.path.dirname(file)) for file in files)
    return tuple(folder for folder in folders if not any(f"{folder}/".startswith(f"{above}/") for above in shown))


def _link_or_copy(source: str, target: str) -> str:
    partial = f"{target}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    try:
        os.link(source, partial, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, partial, follow_symlinks=False)
    about = os.stat(partial, follow_symlinks=False)
    if stat.S_ISREG(about.st_mode) and about.st_mode & 0o444 != 0o444:
        os.chmod(partial, stat.S_IMODE(about.st_mode) | 0o444)
    os.rename(partial, target)
    return target


# ---------------------------------------------------------------- files of strangers

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_ENOSYS = 38


def open_beneath(folder_fd: int, path: str) -> int:
    """Open a file to read it, without following any link or leaving the folder. Raises OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    how = struct.pack("<QQQ", flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    found = int(libc.syscall(_OPENAT2, folder_fd, os.fsencode(path), how, len(how)))
    if found >= 0:
        return found
    code = ctypes.get_errno()
    if code == _ENOSYS and "/" not in path and path not in (".", ".."):  # before Linux 5.6
        return os.open(path, flags, dir_fd=folder_fd)
    raise OSError(code, os.strerror(code), path)


def copy_checked(folder_fd: int, path: str, into: str, digest: str, size: int) -> None:
    """Copy what lies at `path` beneath the folder to a new file. Leaves nothing where it raises Tampered or OSError."""
    try:
        source = open_beneath(folder_fd, path)
    except OSError as error:
        raise Tampered(f"the file {path!r} cannot be opened: {error.strerror}") from None
    try:
        about = os.fstat(source)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
            raise Tampered(f"{path!r} is no plain file with one name")
        if about.st_size != size:
            raise Tampered(f"{path!r} has {about.st_size:,} bytes instead of {size:,}")
        _copy_hashed(source, path, into, digest, size)
    finally:
        os.close(source)


def _copy_hashed(source: int, path: str, into: str, digest: str, size: int) -> None:
    target = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        found = blake3.blake3()
        left = size
        # The sandbox may change the file meanwhile: what counts is what was copied.
        while left > 0 and (piece := os.read(source, min(left, _COPY_BYTES))):
            found.update(piece)
            left -= len(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(target, view) :]
        if left or found.hexdigest() != digest:
            raise Tampered(f"{path!r} does not hold what it was said to hold")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(into)
        raise
    finally:
        os.close(target)
