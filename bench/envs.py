"""One virtual environment for each peer, made on demand: peers pin each other's dependencies, and none may share."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers import peer_class

ROOT = Path(__file__).resolve().parents[1]


class NotInstalled(Exception):
    """A peer that cannot be had here; the message is the installer's own last words."""


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotInstalled(" | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])[-400:])


def _tool() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def python_of(peer: str, folder: Path) -> Path:
    """The interpreter of the peer's environment, made or brought up to date. Raises NotInstalled."""
    requirements = [str(ROOT) if line == "." else line for line in peer_class(peer).requirements]
    home = folder / peer
    python = home / "bin" / "python"
    stamp = home / "requirements.sha256"
    wanted = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()
    fresh = stamp.exists() and stamp.read_text() == wanted
    if fresh and str(ROOT) not in requirements:
        return python
    tool = _tool()
    if not fresh:
        shutil.rmtree(home, ignore_errors=True)
        if tool:
            _run([tool, "venv", "-q", "--python", sys.executable, str(home)])
        else:
            _run([sys.executable, "-m", "venv", str(home)])
    if tool:
        # Our own tree is built anew each time: what is measured is what lies here.
        own = ["--reinstall-package", "fallow"] if str(ROOT) in requirements else []
        _run([tool, "pip", "install", "-q", "--python", str(python), *own, *requirements])
    else:
        _run([str(python), "-m", "pip", "install", "-q", *requirements])
    stamp.write_text(wanted)
    return python
