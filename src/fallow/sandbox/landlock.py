"""Landlock for the calling process and all that it starts: which files, ports and neighbours it may reach.

Standard library only, for any Python from 3.9, and little of it: the launcher loads it inside the sandbox. It stands
behind the mounts and namespaces: a file that a mistake there lets in is still refused here.
"""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
"""The same numbers on every architecture."""
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_SET_NO_NEW_PRIVS = 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_DEVICES = 1 << 6 | 1 << 11
"""Character and block devices: made nowhere."""
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_NET_RIGHTS = 3
"""Binding and connecting of TCP."""
_SCOPES = 3
"""Abstract Unix sockets and signals toward processes outside."""


class Rules:
    """`readable` and `writable` hold files or folders; `devices` may be read, written and controlled. What does not
    exist is left out. `network`: TCP is left to the network namespace."""

    def __init__(
        self, readable: tuple[str, ...], writable: tuple[str, ...], devices: tuple[str, ...], network: bool
    ) -> None:
        self.readable = readable
        self.writable = writable
        self.devices = devices
        self.network = network


def version() -> int:
    """The kernel's Landlock ABI; 0 where it has none or it is not enabled."""
    return max(0, _call(_CREATE, None, 0, _VERSION_FLAG))


def restrict(rules: Rules) -> int:
    """Hold this process to the rules for ever. Returns the ABI in force; 0: the kernel has no Landlock.

    Raises OSError where the kernel has it and refuses.
    """
    abi = version()
    if abi == 0:
        return 0
    files = (1 << 13) - 1
    files |= REFER if abi >= 2 else 0
    files |= TRUNCATE if abi >= 3 else 0
    files |= IOCTL_DEV if abi >= 5 else 0
    net = 0 if abi < 4 or rules.network else _NET_RIGHTS
    scopes = _SCOPES if abi >= 6 else 0
    attributes = struct.pack("=Q", files)
    if abi >= 4:
        attributes += struct.pack("=Q", net)
    if abi >= 6:
        attributes += struct.pack("=Q", scopes)
    ruleset = _checked(_call(_CREATE, attributes, len(attributes), 0), "landlock_create_ruleset")
    try:
        for path in rules.readable:
            _allow(ruleset, path, READ & files)
        for path in rules.writable:
            _allow(ruleset, path, files & ~_MAKE_DEVICES & ~IOCTL_DEV)
        for path in rules.devices:
            _allow(ruleset, path, (READ | WRITE_FILE | TRUNCATE | IOCTL_DEV) & files)
        _checked(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _checked(_call(_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, handle)
        _checked(_call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"landlock_add_rule for {path}")
    finally:
        os.close(handle)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *converted))


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return answer
