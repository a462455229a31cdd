"""How the SDK's requests reach the pool: over NATS, or, inside a task, through the agent's pipe.

Everything that talks runs on one event loop in one background thread; callers hand work to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import msgspec

from fallow.sdk.call_future import this_thread
from fallow.wire.messages import Msg, decode, encode

T = TypeVar("T")

NESTED_REQUESTS_LIMIT = 64
"""Requests of one task that may be under way at once."""


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = _new_loop()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        this_thread.is_loop = True
        self.loop.run_forever()
        with contextlib.suppress(Exception):
            self.loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start the coroutine on the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The same, and wait for it. Must not be called on the loop's own thread."""
        if threading.current_thread() is self.thread:
            work.close()
            raise RuntimeError("a blocking call of Fallow was made on its own event loop")
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, fn: Callable[..., object], *args: object) -> None:
        """Call on the loop, soon. A loop that has ended ignores it."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(fn, *args)

    def stop(self) -> None:
        self.call(self.loop.stop)
        if threading.current_thread() is not self.thread:
            self.thread.join(2.0)


def _new_loop() -> asyncio.AbstractEventLoop:
    if os.name == "posix":
        try:
            import uvloop

            return uvloop.new_event_loop()
        except ImportError:
            pass
    return asyncio.new_event_loop()


class Transport(Protocol):
    """Requests, messages and subscriptions. Called on the loop, but for `open`."""

    reaches_nodes: bool
    """Whether calls may be sent to nodes, not to their job's owner alone."""

    async def request(self, subject: str, message: Msg, timeout_s: float, again_s: float = 0.0) -> Any:
        """One reply; asked again every `again_s` while there is none (0: not). Raises TimeoutError."""

    def repeat(self, subject: str) -> None:
        """Ask again what still waits for an answer on this subject: somebody else is to answer it now."""

    def send(self, subject: str, message: Msg) -> None:
        """Publish; may be lost."""

    def send_now(self, *publications: tuple[str, Msg]) -> bool:
        """The same for each (subject, message), from any thread, where it can be done at once; else False."""

    async def follow(self, subject: str, handler: Callable[[Any, str], None]) -> Callable[[], None]:
        """Subscribe; returns what ends it."""

    async def close(self) -> None: ...


class NatsTransport:
    """Over wire.connection."""

    reaches_nodes = True

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def request(self, subject: str, message: Msg, timeout_s: float, again_s: float = 0.0) -> Any:
        return await self.connection.request(subject, message, timeout_s, again_s)

    def repeat(self, subject: str) -> None:
        self.connection.repeat(subject)

    def send(self, subject: str, message: Msg) -> None:
        self.connection.send(subject, message)

    def send_now(self, *publications: tuple[str, Msg]) -> bool:
        return bool(self.connection.send_now(*publications))

    async def follow(self, subject: str, handler: Callable[[Any, str], None]) -> Callable[[], None]:
        subscription = await self.connection.subscribe(subject, handler)
        tasks: set[asyncio.Task[None]] = set()

        def end() -> None:
            task = asyncio.ensure_future(self.connection.unsubscribe(subscription))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        return end

    async def close(self) -> None:
        await self.connection.close()


class BridgeTransport:
    """Inside a task: the agent relays. `bridge` is worker.nested's."""

    reaches_nodes = False

    def __init__(self, bridge: Any, on_message: Callable[[Any, str], None]) -> None:
        self._bridge = bridge
        self._threads = ThreadPoolExecutor(NESTED_REQUESTS_LIMIT, thread_name_prefix="fallow-nested")
        loop = asyncio.get_running_loop()

        def told(body: bytes) -> None:
            try:
                message = decode(body)
            except msgspec.DecodeError:
                return
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_message, message, "")

        bridge.on_tell(told)

    async def ask(self, kind: str, body: bytes) -> bytes:
        """Ask the agent, off the loop: the bridge blocks."""
        loop = asyncio.get_running_loop()
        return bytes(await loop.run_in_executor(self._threads, self._bridge.ask, kind, body))

    async def request(self, subject: str, message: Msg, timeout_s: float, again_s: float = 0.0) -> Any:
        """The agent, which has the connection, asks again by itself."""
        body = msgspec.msgpack.encode([subject, encode(message), timeout_s])
        reply = await self.ask("request", body)
        if not reply:
            raise TimeoutError(f"no answer on {subject} within {timeout_s:g} s")
        return decode(reply)

    def repeat(self, subject: str) -> None:
        """The agent does, when its job has a new owner."""

    def send(self, subject: str, message: Msg) -> None:
        body = msgspec.msgpack.encode([subject, encode(message)])
        asyncio.get_running_loop().run_in_executor(self._threads, self._bridge.ask, "publish", body)

    def send_now(self, *publications: tuple[str, Msg]) -> bool:
        return False

    async def follow(self, subject: str, handler: Callable[[Any, str], None]) -> Callable[[], None]:
        # Output of nested tasks reaches the outer script by the job's kept log, not through the task.
        return lambda: None

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
