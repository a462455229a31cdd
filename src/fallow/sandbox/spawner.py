"""The one thread that starts sandboxes.

One thread, because a parent-death signal is sent when the *thread* that forked ends: this one lives as long as the
agent. Where the agent is root it also has a mount namespace of its own: what the unprivileged user could not walk to
(an interpreter or folder below root's home) is bound there to a place that it can. The machine's own mounts stay as
they are.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import itertools
import os
import stat
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from fallow.model.errors import SandboxUnavailable
from fallow.sandbox.sweep import own_folder

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_MS_NOSUID, _MS_NODEV, _MS_NOATIME, _MS_BIND, _MS_REC, _MS_SLAVE = 0x2, 0x4, 0x400, 0x1000, 0x4000, 0x80000
_MNT_DETACH = 2


def reachable(path: str) -> bool:
    """Whether any user may walk to it. Its own permissions are another matter."""
    folder = os.path.dirname(path)
    while True:
        try:
            if not os.stat(folder).st_mode & stat.S_IXOTH:
                return False
        except OSError:
            return False
        above = os.path.dirname(folder)
        if above in (folder, ""):
            return True
        folder = above


class Spawner:
    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="sandbox-start")
        self._folder = ""
        self._numbers = itertools.count()
        self._opened: set[str] = set()

    def popen(
        self,
        command: Sequence[str],
        within: AbstractContextManager[None] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """As subprocess.Popen. `within`: entered by the thread that starts it, as long as that takes."""

        def start() -> subprocess.Popen[bytes]:
            with within or contextlib.nullcontext():
                return subprocess.Popen(command, **options)

        return self._threads.submit(start).result()

    def stage(self, paths: Sequence[str]) -> dict[str, str]:
        """Where `popen`ed programs of any user find these; those that they can reach anyway are left out.

        Root only. Raises SandboxUnavailable where the agent may not mount, or a path does not exist.
        """
        hidden = [path for path in dict.fromkeys(paths) if not reachable(path)]
        return self._threads.submit(self._stage, hidden).result() if hidden else {}

    def unstage(self, staged: dict[str, str]) -> None:
        if staged:
            self._threads.submit(self._unstage, list(staged.values())).result()

    def mount_device(self, device: str, kind: str, options: str) -> tuple[str, int]:
        """Mount a file system where `popen`ed programs find it, and nobody else: its path, and its folder opened for
        this process. `unstage` ends it. Root only. Raises OSError."""
        return self._threads.submit(self._mount_device, device, kind, options).result()

    def hand_over(self, paths: Sequence[str], user: int, group: int) -> None:
        """Make the user the owner of what `popen`ed programs find at these paths. Raises OSError."""

        def change() -> None:
            for path in paths:
                os.chown(path, user, group, follow_symlinks=False)

        self._threads.submit(change).result()

    def open_device(self, path: str) -> None:
        """`popen`ed programs of any user find a device of the machine that they may open; it stays as it is for all
        others. Root only. Raises SandboxUnavailable where the agent may not do so."""
        if path not in self._opened and not os.stat(path).st_mode & stat.S_IWOTH:
            self._threads.submit(self._open_device, path).result()
        self._opened.add(path)

    def _open_device(self, path: str) -> None:
        try:
            if not self._folder:
                self._folder = _private_folder()
            node = f"{self._folder}/{next(self._numbers)}"
            os.mknod(node, 0o600 | stat.S_IFCHR, os.stat(path).st_rdev)
            os.chmod(node, 0o666)
            _mount(node, path, _MS_BIND)
        except OSError as error:
            raise SandboxUnavailable(
                f"{path} cannot be given to the user that a sandbox runs as: {error}.",
                f"Start the agent as a plain user, or let all users open {path}.",
            ) from None

    def _mount_device(self, device: str, kind: str, options: str) -> tuple[str, int]:
        if not self._folder:
            self._folder = _private_folder()
        target = f"{self._folder}/{next(self._numbers)}"
        os.mkdir(target)
        try:
            _mount(device, target, _MS_NOSUID | _MS_NODEV | _MS_NOATIME, kind, options)
            return target, os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._unstage([target])
            raise

    def _stage(self, paths: list[str]) -> dict[str, str]:
        staged: dict[str, str] = {}
        try:
            if not self._folder:
                self._folder = _private_folder()
            for path in paths:
                target = f"{self._folder}/{next(self._numbers)}"
                if os.path.isdir(path):
                    os.mkdir(target)
                else:
                    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
                staged[path] = target
                _mount(path, target, _MS_BIND | _MS_REC)
        except OSError as error:
            self._unstage(list(staged.values()))
            raise SandboxUnavailable(
                f"What the sandbox needs cannot be shown to the user that it runs as: {error}.",
                "Start the agent as a plain user, or give its container the right to mount (CAP_SYS_ADMIN).",
            ) from None
        return staged

    @staticmethod
    def _unstage(targets: list[str]) -> None:
        for target in targets:
            _libc().umount2(target.encode(), _MNT_DETACH)
            with contextlib.suppress(OSError):
                (os.rmdir if os.path.isdir(target) else os.unlink)(target)


@functools.cache
def spawner() -> Spawner:
    """The agent's one."""
    return Spawner()


def _private_folder() -> str:
    """Give this thread its own mounts, and an empty file system in memory among them. Raises OSError."""
    folder = own_folder("mounts-")
    atexit.register(_remove, folder)
    _checked(_libc().unshare(_CLONE_FS), "unshare")
    _checked(_libc().unshare(_CLONE_NEWNS), "a mount namespace")
    # What the machine mounts later is seen here; what is mounted here is not seen there.
    _mount("none", "/", _MS_REC | _MS_SLAVE)
    _mount("tmpfs", folder, _MS_NOSUID, "tmpfs", "size=1m,mode=0755")
    return folder


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, flags: int, kind: str = "", options: str = "") -> None:
    arguments = [os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags)]
    _checked(_libc().mount(*arguments, options.encode() or None), f"mounting {source}")


def _checked(answer: int, what: str) -> None:
    if answer != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
