"""A TCP link as between continents: a delay each way, a limit of bytes a second each way, and cuts."""

from __future__ import annotations

import asyncio
import contextlib
import threading

CHUNK_BYTES = 16 * 1024


class SlowLink:
    """Listens on `port` of this machine in a thread of its own and passes on to `target`.

    delay_s: each way; bytes_per_s: each way, over all connections."""

    def __init__(self, target: int, delay_s: float, bytes_per_s: float) -> None:
        self._target = target
        self._delay_s = delay_s
        self._rate = bytes_per_s
        self._writers: set[asyncio.StreamWriter] = set()
        self._free_at = {True: 0.0, False: 0.0}
        self.bytes = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow link", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.port = server.sockets[0].getsockname()[1]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * self._delay_s)  # the handshake's way there and back
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=CHUNK_BYTES)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pass(reader, far_writer, True), self._pass(far_reader, writer, False))
        finally:
            self._writers -= {writer, far_writer}
            writer.close()
            far_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        """Chunks leave in order, each when the line is free and its delay is over."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def deliver() -> None:
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

        delivering = asyncio.ensure_future(deliver())
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                self.bytes += len(data)
                free_at = max(self._free_at[up], self._loop.time()) + len(data) / self._rate
                self._free_at[up] = free_at
                await on_the_way.put((free_at + self._delay_s, data))
        await on_the_way.put((self._loop.time(), b""))
        with contextlib.suppress(OSError):
            await delivering

    def cut(self) -> int:
        """End every connection at once, what is on its way included; how many there were."""

        async def abort() -> int:
            count = len(self._writers) // 2
            for writer in list(self._writers):
                writer.transport.abort()
            return count

        return asyncio.run_coroutine_threadsafe(abort(), self._loop).result(10)

    def close(self) -> None:
        async def end_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
