"""What a sandbox holds of the kernel's own things, which lie in no process's memory: sockets with what waits in them,
pipes, epoll instances. Some the kernel counts by user, and that is often the owner of the machine too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fallow.sandbox.tree import descendants

SOCKETS_MOST = 2048
"""Each holds 208 KiB at most: the filter lets nobody widen a socket's buffers (`seccomp`)."""
PIPES_MOST = 512
"""A user's pipes shrink to an eighth when 1024 of the usual size are in use (pipe-user-pages-soft)."""
EPOLLS_MOST = 256
"""Each watches as many descriptors as may be open; a user has some millions of watches (epoll/max_user_watches)."""


def excess(init_pid: int, by_user: bool) -> str:
    """What is held too much of, in words that begin with 'it'; '': nothing. `by_user`: also what is counted by user."""
    sockets = _sockets(init_pid)
    if sockets > SOCKETS_MOST:
        return f"it has more than {SOCKETS_MOST} sockets"
    if not by_user:
        return ""
    pipes: set[str] = set()
    epolls = 0
    for pid in descendants(init_pid):
        for target in _open(pid):
            if target.startswith("pipe:"):
                pipes.add(target)
            elif target == "anon_inode:[eventpoll]":
                epolls += 1
    if len(pipes) > PIPES_MOST:
        return f"it has more than {PIPES_MOST} pipes, of which a user of this machine has few"
    if epolls > EPOLLS_MOST:
        return f"it has more than {EPOLLS_MOST} epoll instances, whose watches a user of this machine has not for ever"
    return ""


def _sockets(init_pid: int) -> int:
    """Of the whole network namespace: those too that were sent away and closed. 0 where it has none of its own."""
    for pid in descendants(init_pid):
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
                return 0
            words = Path(f"/proc/{pid}/net/sockstat").read_text().split(None, 3)
            return int(words[2])
        except (OSError, ValueError, IndexError):
            continue
    return 0


def _open(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")
        except OSError:
            continue
