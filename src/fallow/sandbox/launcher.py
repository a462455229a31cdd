"""The first program inside a sandbox: sets limits, closes descriptors, applies Landlock, becomes the program.

    python -I -S launcher.py STATUS_FD PLAN_FD [LIFE_FD]
    python -I -S launcher.py SOCKET_FD

PLAN_FD holds the plan, marshalled: not arguments nor environment, which other users of the machine could read. To
STATUS_FD it writes a plus before it becomes the program, and what goes wrong, before or after.

Standard library only, for any Python from 3.9. It runs by its path, beside landlock.py, or, where the interpreter is
the agent's own, as compiled code that comes before the plan (`launcher_code`). Every start of a sandbox waits for it:
it imports little, and nothing that imports much (`typing`, `json`, `signal`).

With LIFE_FD it stays, as the first process of a container: starts the program as its child, reaps, ends with its
status, and at once when the pipe's other end is closed. STATUS_FD then gets one line, a plus where the program runs:
the container's runner keeps copies of descriptors, so that their end tells nothing.

SOCKET_FD, alone, is all three of them, for runners that pass nothing but standard input: the plan comes after its
length (8 bytes, the lowest first), with the program's descriptors and, where it names a port to carry, after these
the carrier's channel. Then orders of 5 bytes: a signal's number for the
program and nothing; or 0 and the number of a process, which is answered by that number (4 bytes) and the memory that
it holds beside files (8).
"""

from __future__ import annotations

import importlib
import marshal
import os
import resource
import sys

LIMITS = {
    "nproc": resource.RLIMIT_NPROC,
    "as": resource.RLIMIT_AS,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "nofile": resource.RLIMIT_NOFILE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": getattr(resource, "RLIMIT_MSGQUEUE", None),
    "sigpending": getattr(resource, "RLIMIT_SIGPENDING", None),
    "rtprio": getattr(resource, "RLIMIT_RTPRIO", None),
    "nice": getattr(resource, "RLIMIT_NICE", None),
}


def main(plan: dict | None = None) -> None:  # type: ignore[type-arg]
    """`plan`: read already."""
    status = int(sys.argv[1])
    stays = len(sys.argv) != 3
    try:
        if plan is None and len(sys.argv) == 2:
            status, plan = _receive(status)
            _stay(status, os.dup(status), plan)
        if plan is None:
            with open(int(sys.argv[2]), "rb") as file:
                plan = marshal.load(file)
        if stays:
            _stay(status, int(sys.argv[3]), plan)
        _become(status, plan)
    except BaseException as error:
        words = f"{type(error).__name__}: {error}".replace("\n", " ")
        os.write(status, words.encode(errors="replace")[:2000] + (b"\n" if stays else b""))
        os._exit(126)


def _receive(descriptor: int) -> tuple:  # type: ignore[type-arg]
    """The socket, out of the way of standard input, and the plan with the numbers that descriptors came under."""
    import fcntl
    import socket
    import struct

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)
    for output in (1, 2):  # the runner has set the machine's pipe to not block, and may have passed that on
        os.set_blocking(output, True)
    data, found = b"", []
    with socket.socket(fileno=os.dup(moved)) as control:
        while len(data) < 8 or len(data) < 8 + struct.unpack("<Q", data[:8])[0]:
            piece, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 64)
            if not piece:
                raise EOFError("the plan did not come")
            data += piece
            found += descriptors
    plan = marshal.loads(data[8:])
    expected = len(plan["descriptors"]) + bool(plan["carried"])
    if len(found) != expected:
        raise EOFError(f"{len(found)} of {expected} descriptors came")
    if plan["carried"]:
        _carry(found.pop(), plan["carried"])
    plan["renumber"] = [(found[place], wanted) for place, wanted in enumerate(plan["descriptors"])]
    return moved, plan


def _carry(channel: int, port: int) -> None:
    """In a process of its own, from now on."""
    import ctypes
    import socket

    carrier = _beside("carrier")
    listening = socket.create_server(("127.0.0.1", port))
    if os.fork() == 0:
        _close_all_but({0, 1, 2, channel, listening.fileno()})
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
        carrier.carry(listening, channel)
        os._exit(0)
    listening.close()
    os.close(channel)


def _stay(status: int, life: int, plan: dict) -> None:  # type: ignore[type-arg]
    """The child becomes the program; the parent ends here. Neither returns."""
    import ctypes
    import select
    import signal
    import struct

    wake, woken = os.pipe()
    report, words = os.pipe()
    gate, opened = os.pipe()
    os.set_blocking(woken, False)
    child = os.fork()
    if child == 0:
        os.close(opened)
        os.read(gate, 1)
        try:
            words = _renumber(plan["renumber"], words)
            _become(words, plan)
        except BaseException as error:
            os.write(words, f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])
        os._exit(126)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    _close_all_but({0, 1, 2, status, life, wake, woken, report, opened})
    # Not dumpable: the program has the same user, and may not write into this memory.
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    os.write(opened, b"+")
    said = b""
    while chunk := os.read(report, 4096):
        said += chunk
    said = said if said == b"+" else said[said.startswith(b"+") :]
    os.write(status, said.replace(b"\n", b" ") + b"\n")
    os.close(status)
    asked = b""
    while True:
        _reap(child)
        ready, _, _ = select.select([wake, life], [], [])
        if life in ready:
            data = os.read(life, 5 * 64)
            if not data:
                os._exit(128 + signal.SIGKILL)
            asked += data
            while len(asked) >= 5:
                _obey(life, child, *struct.unpack("<BI", asked[:5]))
                asked = asked[5:]
        if wake in ready:
            os.read(wake, 4096)


def _obey(life: int, child: int, number: int, pid: int) -> None:
    if number:
        os.kill(child, number)
        return
    import struct

    try:
        with open(f"/proc/{pid}/statm") as file:
            fields = file.read().split()
        held = (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        held = 0
    os.write(life, struct.pack("<IQ", pid, max(0, held)))


def _reap(child: int) -> None:
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == child:
            os._exit(os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else 128 + os.WTERMSIG(ended))


def _renumber(pairs: list, words: int) -> int:  # type: ignore[type-arg]
    """Each (found, wanted) descriptor to its wanted number. Returns where `words` has gone, out of their way."""
    import fcntl

    above = max([2, *(wanted for _, wanted in pairs)]) + 1
    words = fcntl.fcntl(words, fcntl.F_DUPFD_CLOEXEC, above)
    copies = [(fcntl.fcntl(found, fcntl.F_DUPFD_CLOEXEC, above), wanted) for found, wanted in pairs]
    for copy, wanted in copies:
        os.dup2(copy, wanted, inheritable=True)
    return words


def _become(status: int, plan: dict) -> None:  # type: ignore[type-arg]
    os.set_inheritable(status, False)
    if plan["listener"]:
        _listen(*plan["listener"])
    _close_all_but({0, 1, 2, status, *plan["descriptors"]})
    for name, value in plan["limits"].items():
        _limit(LIMITS[name], value)
    if "first_to_end" in plan:
        _end_first()
    os.umask(0o022)
    if "cwd" in plan:
        os.chdir(plan["cwd"])
    rules = plan["landlock"]
    if rules is not None:
        landlock = _beside("landlock")
        landlock.restrict(
            landlock.Rules(
                tuple(rules["readable"]), tuple(rules["writable"]), tuple(rules["devices"]), rules["network"]
            )
        )
    if plan.get("seccomp"):
        _filter(plan["seccomp"])
    os.write(status, b"+")
    os.execve(plan["argv"][0], plan["argv"], plan["environment"])


def _beside(name: str):  # type: ignore[no-untyped-def]
    """A module that lies beside this file, or came with it."""
    if name not in sys.modules:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    return importlib.import_module(name)


def _listen(channel: int, port: int) -> None:
    import socket

    with socket.socket(fileno=channel) as outside, socket.create_server(("127.0.0.1", port)) as listening:
        socket.send_fds(outside, [b"+"], [listening.fileno()])


def _filter(program: bytes) -> None:
    """A system call filter, for runners that set none of ours. Raises OSError."""
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, head, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the system call filter was refused")


def _end_first() -> None:
    """Where the machine runs out of memory the kernel ends this and its children before anything of the owner's."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def _close_all_but(kept: set) -> None:  # type: ignore[type-arg]
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                pass


def _limit(which: int | None, value: int) -> None:
    """Never above what the machine allows already."""
    if which is None:
        return
    hard = resource.getrlimit(which)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


if __name__ == "__main__":
    main()
