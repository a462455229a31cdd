"""A system call filter as a BPF program, in the form that `bwrap --seccomp` reads.

Denied is what reaches into other processes or the kernel itself: tracing, mounts, namespaces, io_uring, BPF, keys,
modules, clocks, terminals' input, and every kind of socket but Unix and IP ones. A denied call answers EPERM, so that
programs that merely try go on. clone3 answers ENOSYS: its flags lie in memory, where no filter can read them, and every
libc then takes clone, whose flags can be read. Calls of a foreign architecture end the process.

What is open or mapped is measured from outside (`tree`): refused is also what would hide it there, a process that
closes itself to its own user, and threads with a table of files of their own. Calls that would widen a socket's buffers
are answered as if they had: what waits in sockets is in nobody's account, and sockets can be counted.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct
from typing import NamedTuple

from fallow.model.errors import SandboxUnavailable

# struct seccomp_data: nr, arch, instruction_pointer, args[6]; the low halves come first on both machines below.
_NR, _ARCH, _ARG0, _ARG1, _ARG2 = 0, 4, 16, 24, 32

_LOAD = 0x20
_JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT = 0x15, 0x35, 0x45
_RETURN = 0x06

_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000 | 0x00000080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME."""
_CLONE_FILES, _CLONE_THREAD = 0x400, 0x10000
_CLOSE_RANGE_UNSHARE = 2
_PR_SET_DUMPABLE = 4
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SOL_SOCKET, _BUFFERS = 1, (7, 8)
"""SO_SNDBUF, SO_RCVBUF."""
_OF_USERS = (1024, 1026, 1031)
"""F_SETLEASE, with which whoever owns a file may hold up all who write it; F_NOTIFY; F_SETPIPE_SZ."""
_PERSONALITIES = (0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, 10)
"""10 is AF_INET6 on Linux; elsewhere the constant has other values, and the filter is assembled there in tests only."""

# fmt: off
_DENIED: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); -1: the machine does not have it.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "move_mount": (429, 429), "open_tree": (428, 428), "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    "unshare": (272, 97), "setns": (308, 268),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, -1), "query_module": (178, -1), "get_kernel_syms": (177, -1),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    "fanotify_init": (300, 262), "iopl": (172, -1), "ioperm": (173, -1), "modify_ldt": (154, -1),
    "nfsservctl": (180, 42), "uselib": (134, -1), "ustat": (136, -1), "sysfs": (139, -1), "_sysctl": (156, -1),
}
# fmt: on


class Machine(NamedTuple):
    """Numbers of one architecture."""

    column: int
    audit: int
    clone: int
    clone3: int
    socket: int
    socketpair: int
    ioctl: int
    personality: int
    shmget: int
    prctl: int
    close_range: int
    inotify: tuple[int, ...]
    fcntl: int
    setsockopt: int


MACHINES = {
    "x86_64": Machine(0, 0xC000003E, 56, 435, 41, 53, 16, 135, 29, 157, 436, (253, 294), 72, 54),
    "aarch64": Machine(1, 0xC00000B7, 220, 435, 198, 199, 29, 92, 194, 167, 436, (26,), 25, 208),
}


def denied_calls(machine: str) -> dict[str, int]:
    """Name and number of every call that is refused whatever its arguments."""
    column = MACHINES[machine].column
    return {name: numbers[column] for name, numbers in _DENIED.items() if numbers[column] >= 0}


def filter_program(machine: str = "", *, shared_memory: bool = True, owners_user: bool = False) -> bytes:
    """The filter for a machine as `platform.machine()` names it; '': this one.

    `shared_memory` False also refuses System V segments: where no control group counts them, nothing bounds them.
    `owners_user`: the program runs as the agent's own user, and what the kernel counts by user it does not take from
    the owner's programs: watchers of folders, of which a user has some hundred, large pipes, and leases of files.
    Raises SandboxUnavailable for a machine whose call numbers are not known here.
    """
    machine = machine or platform.machine()
    known = MACHINES.get(machine)
    if known is None:
        raise SandboxUnavailable(
            f"There is no system call filter for the processor type {machine!r}.",
            f"Lend a machine with {' or '.join(MACHINES)}.",
        )
    program = [
        _step(_LOAD, _ARCH),
        _step(_JUMP_EQUAL, known.audit, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NR),
    ]
    if machine == "x86_64":
        program += [_step(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1), _step(_RETURN, _KILL_PROCESS)]
    program += _answer(known.clone3, errno.ENOSYS)
    for number in denied_calls(machine).values():
        program += _answer(number, errno.EPERM)
    if not shared_memory:
        program += _answer(known.shmget, errno.EPERM)
    for number in known.inotify if owners_user else ():
        program += _answer(number, errno.EMFILE)
    apart = [
        _step(_JUMP_ANY_BIT, _CLONE_THREAD, 0, 2),
        _step(_JUMP_ANY_BIT, _CLONE_FILES, 1, 0),
        _refuse(errno.EPERM),
    ]
    program += _when(known.clone, _ARG0, [_step(_JUMP_ANY_BIT, _NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM), *apart])
    unshares = [_step(_JUMP_ANY_BIT, _CLOSE_RANGE_UNSHARE, 0, 1), _refuse(errno.EPERM)]
    program += _when(known.close_range, _ARG2, unshares)
    program += _when(known.prctl, _ARG0, [_step(_JUMP_EQUAL, _PR_SET_DUMPABLE, 0, 1), _refuse(errno.EPERM)])
    program += _when(
        known.ioctl,
        _ARG1,
        [_step(_JUMP_EQUAL, _TIOCSTI, 1, 0), _step(_JUMP_EQUAL, _TIOCLINUX, 0, 1), _refuse(errno.EPERM)],
    )
    program += _when(known.personality, _ARG0, _unless(_PERSONALITIES, errno.EPERM))
    widen = [_step(_JUMP_EQUAL, _SOL_SOCKET, 0, 2 + len(_BUFFERS)), _step(_LOAD, _ARG2), *_if_any(_BUFFERS, 0)]
    program += _when(known.setsockopt, _ARG1, widen)
    if owners_user:
        program += _when(known.fcntl, _ARG1, _if_any(_OF_USERS, errno.EPERM))
    program += _when(known.socket, _ARG0, _unless(_FAMILIES, errno.EAFNOSUPPORT))
    program += _when(known.socketpair, _ARG0, _unless(_FAMILIES, errno.EAFNOSUPPORT))
    program.append(_step(_RETURN, _ALLOW))
    return b"".join(program)


def _step(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, when_true, when_false, value)


def _refuse(error: int) -> bytes:
    return _step(_RETURN, _ERRNO | error)


def _answer(number: int, error: int) -> list[bytes]:
    return [_step(_JUMP_EQUAL, number, 0, 1), _refuse(error)]


def _when(number: int, argument: int, checks: list[bytes]) -> list[bytes]:
    """Checks on the low half of one argument, if the call is this one; what passes them is allowed."""
    body = [_step(_LOAD, argument), *checks, _step(_RETURN, _ALLOW)]
    return [_step(_JUMP_EQUAL, number, 0, len(body)), *body]


def _unless(values: tuple[int, ...], error: int) -> list[bytes]:
    jumps = [_step(_JUMP_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
    return [*jumps, _refuse(error)]


def _if_any(values: tuple[int, ...], error: int) -> list[bytes]:
    last = len(values) - 1
    jumps = [_step(_JUMP_EQUAL, value, last - place, int(place == last)) for place, value in enumerate(values)]
    return [*jumps, _refuse(error)]
