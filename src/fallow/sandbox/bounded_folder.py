"""A folder that holds no more than it may: a file system of its own, in a file, for an agent that is root.

The file is sparse, and is unlinked as soon as a loop device has it; the file system is mounted where the thread that
starts sandboxes sees it, and the machine does not. So nothing is left when the agent ends, however it ends. Freed
blocks go back to the machine's disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from fallow.sandbox.spawner import spawner

LEAST_BYTES = 8 << 20
BLOCK_BYTES = 4096
BYTES_PER_FILE = 16 << 10
"""One file or folder for so many bytes, at most."""
_OPTIONS = "discard,noinit_itable,nobarrier"
MAKE_WITHIN_S = 30.0
_ATTEMPTS = 64
"""Another program may take the same free loop device first."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GET_FREE, _CONFIGURE, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C05
_AUTOCLEAR, _DIRECT_IO = 4, 16
_INFO_BYTES, _FLAGS_AT = 232, 52
_LOOP_MAJOR = 7
_CONFIG = struct.Struct(f"=II{_INFO_BYTES}s64x")


class NoBoundedFolder(Exception):
    """None can be had here; why, in words."""


class Template(NamedTuple):
    """An empty file system: what is written of it, as (offset, bytes), and the size of its file."""

    pieces: tuple[tuple[int, bytes], ...]
    size: int


@functools.lru_cache(maxsize=4)
def template(size: int) -> Template:
    """Made by mke2fs once for each size. Raises NoBoundedFolder."""
    program = shutil.which("mke2fs", path=_PATH)
    if program is None:
        raise NoBoundedFolder("mke2fs not found (`sudo apt install e2fsprogs`)")
    with tempfile.NamedTemporaryFile(prefix="fallow-template-") as file:
        command = [program, "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-m", "0", "-i", str(BYTES_PER_FILE)]
        command += ["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", file.name]
        # (Nothing is worth a journal that ends with its sandbox.)
        try:
            done = subprocess.run(
                [*command, f"{size // 1024}k"],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=MAKE_WITHIN_S,
                env={"PATH": _PATH, "MKE2FS_CONFIG": "/dev/null"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoBoundedFolder(f"mke2fs cannot be run: {error}") from None
        if done.returncode != 0:
            raise NoBoundedFolder(f"mke2fs failed: {done.stderr.strip()[-300:]}")
        return Template(tuple(_written(file.fileno())), os.fstat(file.fileno()).st_size)


def _written(descriptor: int) -> list[tuple[int, bytes]]:
    """What a sparse file holds."""
    pieces = []
    at, end = 0, os.fstat(descriptor).st_size
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # no more data
            break
        hole = os.lseek(descriptor, at, os.SEEK_HOLE)
        data = os.pread(descriptor, hole - at, at)
        pieces.append((at, data))
        at = hole
    return pieces


class BoundedFolder:
    """`path`: as programs that the spawner starts see it, and nobody else. `descriptor`: the folder, opened; this
    process's until it is closed. `device`: its number. `is_direct`: it has no copy of its own in memory."""

    def __init__(self, parent: Path, size: int) -> None:
        """`parent`: on the disk that is to hold it. Raises NoBoundedFolder."""
        if os.geteuid() != 0:
            raise NoBoundedFolder("the agent is not root")
        size = max(LEAST_BYTES, size) // BLOCK_BYTES * BLOCK_BYTES
        made = template(size)
        try:
            device = _loop_device(parent, made)
            try:
                self.path, self.descriptor = spawner().mount_device(device.path, "ext4", _OPTIONS)
            except BaseException:
                os.close(device.backing)
                raise
            finally:
                os.close(device.descriptor)  # the mount holds it now; without one it goes
        except OSError as error:
            raise NoBoundedFolder(f"no file system can be mounted: {error}") from None
        self._backing = device.backing
        self.device = os.fstat(self.descriptor).st_dev
        self.is_direct = device.is_direct

    @property
    def held_bytes(self) -> int:
        """What it takes of the machine's disk."""
        return os.fstat(self._backing).st_blocks * 512

    def close(self) -> None:
        """It is gone when no sandbox holds it any more."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            os.close(self._backing)
            spawner().unstage({"": self.path})


class _Device(NamedTuple):
    path: str
    descriptor: int
    backing: int
    is_direct: bool
    """Without a copy of its own in memory."""


def _loop_device(parent: Path, made: Template) -> _Device:
    """With a new file behind it, that has no name. Raises OSError."""
    backing = os.open(parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(backing, made.size)
        for at, data in made.pieces:
            os.pwrite(backing, data, at)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_ATTEMPTS):
                if (found := _configured(fcntl.ioctl(control, _GET_FREE), backing)) is not None:
                    return found
                time.sleep(0.001)
        finally:
            os.close(control)
        raise OSError("no free loop device")
    except BaseException:
        os.close(backing)
        raise


def _configured(number: int, backing: int) -> _Device | None:
    """None where another program was faster. Raises OSError."""
    path = f"/dev/loop{number}"
    if not os.path.exists(path):  # a container's /dev has those alone that it began with
        with contextlib.suppress(FileExistsError):
            os.mknod(path, 0o60600, os.makedev(_LOOP_MAJOR, number))
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        info = bytearray(_INFO_BYTES)
        info[_FLAGS_AT : _FLAGS_AT + 4] = struct.pack("=I", _AUTOCLEAR | _DIRECT_IO)
        try:
            fcntl.ioctl(descriptor, _CONFIGURE, _CONFIG.pack(backing, BLOCK_BYTES, bytes(info)))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != 16:  # EBUSY
                raise
            os.close(descriptor)
            return None
        status = bytearray(_INFO_BYTES)
        fcntl.ioctl(descriptor, _GET_STATUS, status)
        (flags,) = struct.unpack_from("=I", status, _FLAGS_AT)
        return _Device(path, descriptor, backing, bool(flags & _DIRECT_IO))
    except BaseException:
        os.close(descriptor)
        raise
