"""What of the host a sandbox sees: the system's programs and libraries, read only, and an /etc made for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from fallow.model.errors import SandboxUnavailable

LAUNCHER_FOLDER = "/run/fallow"
_LAUNCHER = ("launcher.py", "landlock.py", "carrier.py")
USER = "worker"
USER_ID = 1000
"""Of the program, as it sees itself, whoever runs the agent."""

_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ca-certificates",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/etc/alternatives",
    "/etc/fonts",
)
_ELSEWHERE = ("/sys/devices/system/cpu",)


class SystemView(NamedTuple):
    """Folders and files of the host under their own paths, links as (target, path), and files made up by content."""

    bound: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    made: tuple[tuple[str, str], ...]


def python_prefixes() -> tuple[str, ...]:
    """Where the agent's own interpreter lies, if it is not part of the system: environments link to it."""
    prefix = os.path.realpath(sys.base_prefix)
    if _inside(prefix, "/usr") or prefix == "/":
        return ()
    refuse_homes(prefix)
    return (prefix,)


def refuse_homes(prefix: str) -> None:
    """Raises SandboxUnavailable where a folder that strangers' code is to see holds this user's home."""
    home = os.path.realpath(os.path.expanduser("~"))
    if home != "/" and _inside(home, os.path.realpath(prefix)):
        raise SandboxUnavailable(
            f"Python's own folder is {prefix}, and in it lies all of {home}: strangers' code would see it.",
            "Install Fallow in an environment that has a folder for itself: `python3 -m venv ~/fallow-venv`, then "
            "`~/fallow-venv/bin/pip install fallow`.",
        )


def interpreter() -> str:
    """The agent's interpreter without its virtual environment; it starts the launcher."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def launcher_files() -> tuple[tuple[str, str], ...]:
    """(On the host, inside.)"""
    here = Path(__file__).parent
    return tuple((str(here / name), f"{LAUNCHER_FOLDER}/{name}") for name in _LAUNCHER)


def system_view(name_servers: tuple[str, ...] = (), hostname: str = "sandbox") -> SystemView:
    """`name_servers`: for /etc/resolv.conf; none: names are not resolved."""
    bound = ["/usr"]
    links = []
    for name in _TOP:
        path = f"/{name}"
        if os.path.islink(path):
            links.append((os.readlink(path), path))
        elif os.path.isdir(path):
            bound.append(path)
    bound += [path for path in (*_ETC, *_ELSEWHERE) if os.path.exists(path)]
    bound += python_prefixes()
    made = (
        (
            "/etc/passwd",
            f"{USER}:x:{USER_ID}:{USER_ID}:{USER}:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ("/etc/group", f"{USER}:x:{USER_ID}:\nnogroup:x:65534:\n"),
        ("/etc/hosts", f"127.0.0.1 localhost {hostname}\n::1 localhost\n"),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("/etc/resolv.conf", "".join(f"nameserver {address}\n" for address in name_servers)),
    )
    return SystemView(tuple(bound), tuple(links), made)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
