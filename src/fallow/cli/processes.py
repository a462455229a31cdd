"""Child processes of a supervisor: forked, in sessions of their own, ending with their parent.

The supervisor that uses this is single-threaded, which is what makes a fork without an exec safe.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_LIMIT_BYTES = 8 * 1024 * 1024
"""A child's log that is longer when the child starts is put aside as NAME.log.1, over the one before it."""


class Child:
    """A process that was started here. `exit_status` is set once it was reaped."""

    def __init__(self, name: str, pid: int, ready_fd: int, log: Path, log_begin: int = 0) -> None:
        self.name = name
        self.pid = pid
        self.ready_fd = ready_fd
        """Becomes readable with one byte when the child says that it is ready, with none when it ends; -1: closed."""
        self.log = log
        self._log_begin = log_begin
        self.started_s = time.monotonic()
        self.exit_status: int | None = None

    def poll(self) -> bool:
        """Reap the process if it ended. True if it has."""
        if self.exit_status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self.exit_status = status
        return self.exit_status is not None

    def signal(self, number: int) -> None:
        """Send a signal, if the process still is ours to signal."""
        if not self.poll():
            os.kill(self.pid, number)

    def close(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    @property
    def exit_words(self) -> str:
        """How it ended, for people."""
        return describe_exit(self.exit_status or 0)

    def last_words(self, lines: int = 6) -> str:
        """The end of what it wrote to its log, which holds why it ended if it said so."""
        return read_tail(self.log, lines, self._log_begin)


def describe_exit(status: int) -> str:
    """Words for a status of os.waitpid."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"ended by {signal.Signals(number).name}"
        except ValueError:
            return f"ended by signal {number}"
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"


def read_tail(path: Path, lines: int, begin: int = 0) -> str:
    """The last lines of a text file behind its byte `begin`, at most 4 KiB; '' if there are none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def fork_child(
    name: str,
    body: Callable[[Callable[[], None]], int],
    *,
    log: Path,
    close: Sequence[int] = (),
    inherit_stderr: bool = False,
) -> Child:
    """Run `body(ready)` in a forked process and return at once. `ready` tells the parent that the child serves.

    What the body returns is the exit code; an exception is printed and makes it 1. `close` are descriptors of the
    parent that the child must not keep."""
    parent = os.getpid()
    if sys.platform == "linux":
        # Every child needs it at once (die_with_parent): loaded here, it is loaded once.
        import ctypes  # noqa: F401
    read_fd, write_fd = os.pipe()
    alive_fd = -1 if sys.platform == "linux" else _alive_pipe()
    _put_aside(log)
    log_begin = log.stat().st_size if log.exists() else 0
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write_fd)
        if alive_fd >= 0:
            os.close(alive_fd)
        return Child(name, pid, read_fd, log, log_begin)
    code = 1
    try:
        os.setsid()
        for fd in (read_fd, *_alive_pipes, *close):
            if fd >= 0:
                os.close(fd)
        die_with_parent(parent, alive_fd)
        _reset_signals()
        _redirect(log, inherit_stderr)

        def ready() -> None:
            nonlocal write_fd
            if write_fd >= 0:
                os.write(write_fd, b"R")
                os.close(write_fd)
                write_fd = -1

        code = body(ready)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        # The parent's clean-up (exit handlers, buffers, temporary folders) must not run here a second time.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def exec_child(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    close: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
) -> Child:
    """Start a program in a process of its own, with these variables besides this process's. An exec that fails is
    exit code 127 with words in the log."""

    def body(_ready: Callable[[], None]) -> int:
        try:
            os.execve(arguments[0], list(arguments), {**os.environ, **(variables or {})})
        except OSError as error:
            print(f"cannot start {arguments[0]}: {error.strerror}", file=sys.stderr)
            return 127

    return fork_child(name, body, log=log, close=close)


_alive_pipes: list[int] = []


def _alive_pipe() -> int:
    """The reading end of a pipe whose writing end lives exactly as long as this process."""
    read_fd, write_fd = os.pipe()
    _alive_pipes.append(write_fd)
    return read_fd


def die_with_parent(parent: int, alive_fd: int = -1) -> None:
    """End this process when its parent ends, however that happens: by the kernel on Linux, else by a thread that
    waits for the end of a pipe (which an exec loses: the server then notices that its clients are gone)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    elif alive_fd >= 0:
        import threading

        def wait() -> None:
            os.read(alive_fd, 1)
            os._exit(1)

        threading.Thread(target=wait, daemon=True, name="parent watch").start()
    if os.getppid() != parent:
        os._exit(1)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _put_aside(log: Path) -> None:
    try:
        if log.stat().st_size > LOG_LIMIT_BYTES:
            os.replace(log, log.with_name(log.name + ".1"))
    except OSError:
        pass


def _redirect(log: Path, inherit_stderr: bool) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    if not inherit_stderr:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    os.close(nothing)


def is_writable(folder: Path) -> bool:
    """Make the folder if need be; say whether this user can put files there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
