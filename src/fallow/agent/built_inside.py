"""Environments of strangers' jobs, built in a sandbox: nothing of theirs runs on the machine itself, or is read by it.

uv and what it installs, build scripts of source distributions among it, see the system's programs, an interpreter, and
one bounded folder. They reach the web through `gate` alone. Every build has a cache of its own: one that builds share
could be poisoned by any of them. When the sandbox has ended, what it left is looked at, file by file, and moved over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from fallow.agent.confined import Confinement, interpreter_folders
from fallow.agent.gate import PORTS, Gate, received
from fallow.agent.limits.writers import Writer
from fallow.agent.taken_tree import take_over
from fallow.core.quantities import size_words
from fallow.model.errors import EnvironmentFailed, SandboxUnavailable
from fallow.sandbox.folders import remove_tree
from fallow.sandbox.protocol import LISTENER_PORT, Mount, Program, Running

LEAST_BYTES = 64 << 20
"""A build that may hold less is not begun."""
FETCHED_SHARE = 2
"""A build may fetch this many times what it may hold on disk."""
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX_STRATEGY")
_OTHER_VARIABLES = ("UV_INSECURE_HOST", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS", "SSL_CERT_FILE", "SSL_CERT_DIR", "LANG")
_ADDRESS = re.compile(r"https?://[^\s\"',]+")
_FOLDER, _UV, _WANTED, _SETTINGS = "/build", "/build-tools/uv", "/build-tools/requirements.txt", "/build-tools/uv.toml"
_SCRIPT = 'set -e; mkdir cache home tmp; "$1" venv -q --no-project --relocatable --python "$2" env; shift 2; exec "$@"'
_POLL_S = 0.05
_WORDS_BYTES = 64 * 1024


class NotInside(Exception):
    """Environments cannot be built in a sandbox here; why, in words."""


async def install_inside(
    confinement: Confinement,
    uv: str,
    interpreter: str,
    requirements: str,
    allow_sdist: bool,
    box: Path,
    skeleton: Path,
    timeout_s: float,
) -> None:
    """Install into `skeleton`, a virtual environment that uv has just made. `requirements`: a file's text. `box`: a
    folder to be made for the build; it is gone afterwards. `timeout_s` 0: none.

    Raises EnvironmentFailed with uv's words, NotInside where no sandbox can do it, TimeoutError, OSError."""
    settings = _Settings.of_owner(confinement.index_hosts)
    quota = await build_quota(confinement)
    ours, theirs = socket.socketpair()
    gate = Gate(settings.hosts, quota * FETCHED_SHARE)
    writer: Writer | None = None
    running: Running | None = None
    loop = asyncio.get_running_loop()
    try:
        box.mkdir(mode=0o700)
        (box / "work").mkdir(mode=0o700)
        wanted = box / "requirements.txt"
        wanted.write_text(requirements)
        wanted.chmod(0o644)
        program = _program(confinement, uv, interpreter, allow_sdist, box, settings, theirs.fileno(), quota)
        starting = loop.run_in_executor(None, confinement.sandbox.start, program)
        try:
            running = await asyncio.shield(starting)
        except asyncio.CancelledError:
            running = await starting
            raise
        except SandboxUnavailable as error:
            raise NotInside(str(error)) from None
        writer = Writer(lambda: running.disk_bytes if running is not None else 0, running.end, is_seen=True)
        confinement.writers.add(writer)
        if (way := received(ours)) is None:
            raise NotInside("the sandbox gave no way to the package index.")
        await gate.serve(way)
        async with asyncio.timeout(timeout_s or None):
            while (status := running.poll()) is None:
                if gate.refused and not allow_sdist:
                    break  # uv itself was refused, and would only try again
                await asyncio.sleep(_POLL_S)
        why = running.why
        # What is looked at below must not change any more.
        await loop.run_in_executor(None, running.close)
        running = None
        if why or status != 0:
            words = f"its sandbox was ended: {why}" if why else _last_words(box / "log")
            if gate.refused:
                hosts = ", ".join(sorted(gate.refused)[:8])
                words += (
                    f"\nNot let out of the sandbox: {hosts}. Its address is not public, or its port not the web's. "
                    "If it is a package index of the machine's owner: `fallow node limits sandbox.index_hosts=HOST`."
                )
                if not allow_sdist:
                    raise NotInside(words.strip())
            raise EnvironmentFailed(words)
        await loop.run_in_executor(None, _take, box / "work", skeleton)
    finally:
        ours.close()
        theirs.close()
        if running is not None:
            await loop.run_in_executor(None, running.close)
        if writer is not None:
            confinement.writers.remove(writer)
        await gate.close()
        await loop.run_in_executor(None, remove_tree, box)


async def build_quota(confinement: Confinement) -> int:
    """What a build that begins now may hold on disk, in bytes. Raises EnvironmentFailed where that is next to
    nothing."""
    quota = await confinement.writers.room(confinement.build_bytes)
    if quota < min(LEAST_BYTES, confinement.build_bytes):
        raise EnvironmentFailed(
            f"no environment can be built on this node now: of the disk that it lends {size_words(quota)} are left."
        )
    return quota


class _Settings(msgspec.Struct):
    """Where uv on this machine looks for packages. `hosts`: (host, port), reached whatever their address."""

    environment: dict[str, str]
    file: str
    hosts: set[tuple[str, int]]

    @classmethod
    def of_owner(cls, index_hosts: tuple[str, ...]) -> _Settings:
        """Raises NotInside where they hold a password: code of strangers could read it."""
        environment = {name: value for name in _INDEX_VARIABLES if (value := os.environ.get(name))}
        file = _settings_file()
        hosts: set[tuple[str, int]] = set()
        for word in index_hosts:
            host, _, port = word.rpartition(":") if word.rpartition(":")[2].isdigit() else (word, "", "")
            hosts |= {(host, int(port))} if port else {(host, known) for known in PORTS}
        for text in (*environment.values(), file.read_text(errors="replace") if file else ""):
            for address in _ADDRESS.findall(text):
                parts = urlsplit(address)
                if parts.username or parts.password:
                    raise NotInside(
                        "the package index of this machine needs a password, which strangers' code could read."
                    )
                with contextlib.suppress(ValueError):
                    hosts.add((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)))
        environment |= {name: value for name in _OTHER_VARIABLES if (value := os.environ.get(name))}
        return cls(environment, str(file or ""), hosts)


def _settings_file() -> Path | None:
    """uv's own, of the user or the machine."""
    named = os.environ.get("UV_CONFIG_FILE")
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for path in (named, f"{home}/uv/uv.toml", "/etc/uv/uv.toml"):
        if path and os.path.isfile(path):
            return Path(path)
    return None


def _program(
    confinement: Confinement,
    uv: str,
    interpreter: str,
    allow_sdist: bool,
    box: Path,
    settings: _Settings,
    listener: int,
    quota: int,
) -> Program:
    proxy = f"socks5h://127.0.0.1:{LISTENER_PORT}"
    environment = settings.environment | {
        "PATH": "/usr/bin:/bin",
        "HOME": f"{_FOLDER}/home",
        "TMPDIR": f"{_FOLDER}/tmp",
        "UV_CACHE_DIR": f"{_FOLDER}/cache",
        "UV_LINK_MODE": "hardlink",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        "ALL_PROXY": proxy,
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
    }
    mounts = [Mount(folder) for folder in interpreter_folders(interpreter)]
    mounts += [Mount(os.path.realpath(uv), _UV), Mount(str(box / "requirements.txt"), _WANTED)]
    if settings.file:
        environment["UV_CONFIG_FILE"] = _SETTINGS
        mounts.append(Mount(settings.file, _SETTINGS))
    certificates = environment.get("SSL_CERT_FILE", "")
    if certificates and not certificates.startswith("/etc/ssl/certs/"):
        mounts.append(Mount(certificates))
    mounts.append(Mount(str(box / "work"), _FOLDER, writable=True))
    install = [_UV, "pip", "install", "--python", f"{_FOLDER}/env/bin/python", "--requirement", _WANTED]
    # The environment is read only for those who use it: they could not keep what they compile.
    install.append("--compile-bytecode")
    if not allow_sdist:
        install += ["--only-binary", ":all:"]
    limits = msgspec.structs.replace(confinement.limits, disk_bytes=quota)
    return Program(
        argv=("/bin/sh", "-c", _SCRIPT, "sh", _UV, interpreter, *install),
        environment=environment,
        cwd=_FOLDER,
        mounts=tuple(mounts),
        limits=limits,
        listener=listener,
        log=str(box / "log"),
    )


def _take(work: Path, skeleton: Path) -> None:
    remove_tree(work / "cache")  # what was linked from there has one name now
    take_over(work / "env", skeleton)


def _last_words(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _WORDS_BYTES))
        return file.read().decode(errors="replace")
    return ""
