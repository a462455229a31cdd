"""Network for a sandbox: public addresses alone, made without root and without a change to the machine's own network.

A holder keeps a user and a network namespace. Rules that refuse all but public addresses are set in it before it has
any way out; then pasta (of the package `passt`) carries its connections, as an ordinary program of the sandbox's user.
bwrap starts inside it and makes another user namespace below: there no capability over the network is left, so that the
program cannot change the rules. All ends when the agent closes, or loses, the pipes that it holds.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from fallow.model.errors import SandboxUnavailable
from fallow.sandbox.identity import Identity, choose_identity
from fallow.sandbox.protocol import Layer
from fallow.sandbox.public import own_networks, rules
from fallow.sandbox.spawner import spawner
from fallow.sandbox.tree import children

NAME_SERVERS = ("9.9.9.9", "1.1.1.1")
"""Public ones: the owner's own would tell names of the owner's network."""
START_WITHIN_S = 15.0
CLOSE_WITHIN_S = 5.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PACKAGES = {"pasta": "passt", "nft": "nftables", "unshare": "util-linux", "nsenter": "util-linux", "sh": "dash"}
_TUN = "/dev/net/tun"
_PROFILE = "/etc/apparmor.d/usr.bin.passt"
"""Debian 12's, of 2023, forbids pasta to look at the namespaces of others."""
_HOLD = (
    '"$1" "$2" && { echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; } 2>/dev/null; '
    '"$1" list table inet fallow >/dev/null && echo + && exec cat >/dev/null'
)
"""$1 $2: nft and its rules. Nobody else can have the IPv6 address, and looking for that takes 2 s. `cat` ends with the
pipe."""
_CARRY = 'ulimit -f 128; "$@" & carrier=$!; cat >/dev/null; kill $carrier; wait $carrier'
"""A background program has no use of the pipe, so that the shell watches it."""


PROXY_WORDS = (
    "a job that asks for network, where the owner lends it, reaches public addresses over HTTP and HTTPS, through the "
    "agent"
)


def egress_layer() -> Layer:
    """Whether it can be given here: tried."""
    words = "a job that asks for network, where the owner lends it, reaches public addresses and no others"
    try:
        Egress(choose_identity()).close()
    except SandboxUnavailable as error:
        return Layer("egress", False, f"{error.message} Without it {PROXY_WORDS}", error.remedy)
    return Layer("egress", True, words)


class Egress:
    """One sandbox's way out."""

    def __init__(self, identity: Identity, guarded: bool = True) -> None:
        """`guarded` False leaves the rules out, for tests that show what they are for.

        Raises SandboxUnavailable with what is missing."""
        self._rules = rules(own_networks()) if guarded else "table inet fallow { }"
        self._identity = identity
        self._processes: list[subprocess.Popen[bytes]] = []
        self._tools = _tools()
        try:
            if identity.changed:
                spawner().open_device(_TUN)
            with tempfile.TemporaryFile() as said:
                self._start(said)
        except BaseException:
            self.close()
            raise

    @property
    def prefix(self) -> list[str]:
        """What goes before a command that is to run inside, as the same user."""
        return [self._tools["nsenter"], "--user", "--net", "--preserve-credentials", "-t", str(self._holder), "--"]

    @property
    def namespace(self) -> str:
        """Of its network, for runners that join one as root. Whoever does so is another user than `identity`: that one
        could change the rules."""
        return f"/proc/{self._holder}/ns/net"

    def close(self) -> None:
        for process in reversed(self._processes):
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(CLOSE_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._processes.clear()

    def _start(self, said: IO[bytes]) -> None:
        tools = self._tools
        hold = [tools["unshare"], "--user", "--map-root-user", "--net", tools["sh"], "-c", _HOLD, "sh"]
        holder = self._popen([*hold, tools["nft"], self._rules], said, stdout=subprocess.PIPE)
        self._holder = holder.pid
        assert holder.stdout is not None
        ready, _, _ = select.select([holder.stdout], [], [], START_WITHIN_S)
        if not ready or os.read(holder.stdout.fileno(), 1) != b"+":
            self._refuse("The rules that refuse private addresses cannot be set", said)
        carry = [tools["pasta"], "--foreground", "--quiet", "--config-net", "--no-map-gw"]
        carry += ["--no-dhcp", "--no-dhcpv6", "--no-ra", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]
        self._popen([tools["sh"], "-c", _CARRY, "sh", *carry, str(holder.pid)], said)
        self._await_route(holder.pid, said)

    def _popen(self, command: list[str], said: IO[bytes], **options: Any) -> subprocess.Popen[bytes]:
        if self._identity.changed:
            options |= {"user": self._identity.user, "group": self._identity.group, "extra_groups": []}
        options.setdefault("stdout", said)
        try:
            process = spawner().popen(
                command,
                env={"PATH": _PATH},
                cwd="/",
                stdin=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
                **options,
            )
        except OSError as error:
            raise SandboxUnavailable(f"{command[0]} cannot be run: {error}.") from None
        self._processes.append(process)
        return process

    def _await_route(self, holder: int, said: IO[bytes]) -> None:
        carrier = self._processes[-1].pid
        begun = False
        deadline = time.monotonic() + START_WITHIN_S
        while not _has_route(holder):
            # The shell has started pasta and `cat`; with pasta gone one child is left.
            begun = begun or len(children(carrier)) > 1
            ended = begun and len(children(carrier)) < 2
            if (ended and not _has_route(holder)) or time.monotonic() > deadline:
                self._refuse("pasta cannot carry a sandbox's connections", said)
            time.sleep(0.002)

    def _refuse(self, what: str, said: IO[bytes]) -> NoReturn:
        said.seek(0)
        lines = said.read(1 << 16).decode(errors="replace").splitlines()
        words = " ".join(line.strip() for line in lines if line.strip() and "syslog" not in line)[-500:]
        remedy = ""
        if "tun" in words:
            remedy = f"Give the agent {_TUN} (`sudo modprobe tun`; in a container, that device)."
        elif "user namespace" in words and os.path.exists(_PROFILE):
            remedy = (
                f"AppArmor's profile of this version of passt keeps it from sandboxes. Install a newer passt, or do "
                f"without the profile: `sudo ln -s {_PROFILE} /etc/apparmor.d/disable/ && sudo apparmor_parser -R "
                f"{_PROFILE}`."
            )
        elif "routable" in words:
            remedy = "This machine has no route to the internet itself."
        raise SandboxUnavailable(f"{what}: {words or 'it said nothing'}.", remedy)


def _tools() -> dict[str, str]:
    found = {name: shutil.which(name, path=_PATH) for name in _PACKAGES}
    missing = [name for name, path in found.items() if not path]
    if missing:
        packages = " ".join(dict.fromkeys(_PACKAGES[name] for name in missing))
        raise SandboxUnavailable(
            f"A sandbox with public addresses needs {' and '.join(missing)}.",
            f"Install: `sudo apt install {packages}`, or your distribution's packages of these names.",
        )
    if not os.path.exists(_TUN):
        raise SandboxUnavailable(
            f"A sandbox with public addresses needs {_TUN}.", "Load it: `sudo modprobe tun`; in a container, give it."
        )
    return {name: path for name, path in found.items() if path}


def _has_route(pid: int) -> bool:
    """Whether its network namespace has a default route."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]:
            words = line.split()
            if len(words) > 7 and int(words[1], 16) == 0 and int(words[7], 16) == 0:
                return True
        for line in Path(f"/proc/{pid}/net/ipv6_route").read_text().splitlines():
            words = line.split()
            if len(words) > 9 and words[1] == "00" and words[9] != "lo":
                return True
    return False
