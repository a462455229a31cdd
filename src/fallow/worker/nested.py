"""How code inside a task reaches the agent: nested calls, files, the pool."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from fallow.worker.channel import Channel


class Bridge:
    """Requests to the agent over the worker's own socket. Any thread may ask."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def ask(self, kind: str, body: bytes) -> bytes:
        """Ask and wait; kinds as in agent.worker_api.WorkerCallbacks.asked. An agent that is gone ends this process."""
        return self._channel.ask(kind, body)

    def on_tell(self, callback: Callable[[bytes], None]) -> None:
        """Call `callback` (on a thread of the bridge; it must return soon) with each message from the pool."""
        self._channel.on_tell(callback)


_bridge: Bridge | None = None
_pid = 0


def install(channel: Channel) -> None:
    """Called once by the worker."""
    global _bridge, _pid
    _bridge, _pid = Bridge(channel), os.getpid()


def current() -> Bridge | None:
    """The bridge, inside a worker; None elsewhere, and in processes that a task has forked."""
    return _bridge if _pid == os.getpid() else None


def blob_path(digest: str, size: int) -> str:
    """Local path of a blob of the pool, fetched by the agent if need be. Raises RuntimeError outside a worker,
    OSError when the agent cannot get it."""
    bridge = current()
    if bridge is None:
        raise RuntimeError("blobs of the pool can be opened in a task only")
    path = bridge.ask("blob", msgspec.msgpack.encode((digest, size))).decode()
    if not path:
        raise OSError(f"the node could not fetch the blob {digest[:12]} ({size:,} bytes) from the pool")
    return path
