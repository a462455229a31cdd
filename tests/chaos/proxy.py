"""TCP links that can be cut: every connection from one part to another passes one, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class _Half(asyncio.Protocol):
    """One end of a connection through a link. What comes in leaves at the other end."""

    def __init__(self, link: Link, other: _Half | None = None) -> None:
        self.link = link
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.waiting: list[bytes] = []
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.link.halves.add(self)
        if self.other is None:
            self.link.open_far_end(self)
        self.apply()

    def apply(self) -> None:
        """Read, unless the link carries nothing or the other end takes nothing."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.link.is_cut or self.full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self.waiting.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.full = True
            self.other.apply()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.full = False
            self.other.apply()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.link.halves.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Link:
    """From `name`, listening on a port of its own, to a port of this machine. `is_cut`: connections stand, and
    nothing passes, as where a cable was pulled; afterwards what was sent meanwhile arrives."""

    def __init__(self, name: str, target: int) -> None:
        self.name = name
        self.target = target
        self.port = 0
        self.is_cut = False
        self.halves: set[_Half] = set()
        self._opening: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Half(self), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def open_far_end(self, near: _Half) -> None:
        task = asyncio.get_running_loop().create_task(self._open(near))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, near: _Half) -> None:
        while self.is_cut:
            await asyncio.sleep(0.05)
        try:
            _, far = await asyncio.get_running_loop().create_connection(
                lambda: _Half(self, near), "127.0.0.1", self.target
            )
        except OSError:
            if near.transport is not None:
                near.transport.abort()
            return
        near.other = far
        assert far.transport is not None
        far.transport.writelines(near.waiting)
        near.waiting = []
        if near.transport is None or near.transport.is_closing():
            far.transport.close()

    def cut(self, cut: bool) -> None:
        self.is_cut = cut
        for half in list(self.halves):
            half.apply()


class Links:
    """All links, and the thread that serves them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self.by_name: dict[str, Link] = {}

    def add(self, name: str, target: int) -> Link:
        link = Link(name, target)
        self._run(link.listen())
        self.by_name[name] = link
        return link

    def cut(self, prefix: str, cut: bool = True) -> list[str]:
        """Cut, or mend, every link whose name begins so; their names."""
        found = [link for name, link in self.by_name.items() if name.startswith(prefix)]

        async def apply() -> None:
            for link in found:
                link.cut(cut)

        self._run(apply())
        return [link.name for link in found]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
