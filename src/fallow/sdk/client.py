"""The script's one client of its pool: made at first use, closed when the script ends."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from fallow.model.errors import FallowError, PoolUnreachable
from fallow.model.ids import ClientId, Digest, JobId, new_id
from fallow.sdk import script_end
from fallow.sdk.pool import FoundPool, find_pool, pool_ended, remember_for_children
from fallow.sdk.script_end import say

if TYPE_CHECKING:
    from fallow.model.job import Blob, Purpose
    from fallow.sdk.transport import LoopThread, Transport
    from fallow.wire.blob_files import BlobFiles
    from fallow.wire.messages import Msg, PoolInfo

REQUEST_S = 2.0
PATIENCE_S = 900.0
"""How long a request is repeated to a pool that does not answer, once it has answered at all."""
FIRST_ANSWER_S = 30.0
PING_S = 10.0
SYNC_S = 2.0
NOTICE_AFTER_S = 3.0
EXIT_CANCEL_S = 1.0
NO_ROOM_AGAIN_S = 60.0
BARS_END_S = 0.5


class Attached(Protocol):
    """Something that lives in the pool for this script, and ends with it."""

    job_id: JobId

    def describe(self) -> str: ...

    def settled(self) -> bool:
        """Nothing is waited for any more: to end it now is a success."""

    def tick(self, now: float) -> None:
        """On the loop, every SYNC_S."""

    def message(self, message: Any) -> None:
        """On the loop: something pushed to this client about the job."""

    def pool_closed(self, error: BaseException) -> None:
        """The client is closing; wake whoever waits."""


class BlobPort(Protocol):
    """See wire.blobs.BlobClient; called on the loop."""

    @property
    def local_files(self) -> BlobFiles | None: ...

    def at_hand(self, blob: Blob) -> Any: ...

    async def put_segments(self, segments: list[Any], *, durable: bool = True, purpose: Purpose = ...) -> Blob: ...

    async def put_file(self, path: Any, *, durable: bool = True) -> Blob: ...

    async def sync(self, digests: Any) -> None: ...

    async def fetch(self, blob: Blob) -> Any: ...

    async def close(self) -> None: ...


class Client:
    """Connected, or on its way to be: `ready()` waits. Methods in the first part are for any thread."""

    def __init__(self, bridge: Any = None) -> None:
        self.nested = bridge is not None
        self.id = ClientId(new_id("client", os.urandom))
        self.pid = os.getpid()
        self.closed = False
        self.attached: dict[JobId, Attached] = {}
        self.cancelling: dict[JobId, tuple[str, bool]] = {}
        """Jobs whose end is asked for and not confirmed yet, with what `cancel_job` takes: the script may end first."""
        self.info: PoolInfo
        self.transport: Transport
        self.blobs: BlobPort
        self.found: FoundPool | None = None
        self.last_output = 0.0
        self.unsynced: set[Digest] = set()
        """Blobs of fallow.put and fallow.File: only a detached job may need them after a loss of power."""
        self.executors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._bridge = bridge
        self._opened: Future[None] = Future()
        self._trouble_since = 0.0
        self._said_trouble = False
        self._say_room_at = 0.0
        self._ticker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        if not self.nested:
            # The pool's process starts first; everything below is imported while it does.
            self.found = find_pool()
        from fallow.sdk.transport import LoopThread

        self.thread: LoopThread = LoopThread("fallow-client")
        self.thread.submit(self._open())

    def ready(self) -> Client:
        """Wait until the pool has answered. Raises PoolError."""
        try:
            self._opened.result()
        except FallowError as error:
            # Where in our loop it arose says nothing to whoever reads the traceback.
            raise error.with_traceback(None) from None
        return self

    def submit_blocking(self, work: Any) -> Any:
        return self.thread.run(work)

    def later(self, fn: Callable[..., object], *args: object) -> None:
        """Call on the loop, soon."""
        self.thread.call(fn, *args)

    # ------------------------------------------------------------ on the loop

    async def sync_blobs(self) -> None:
        """Before a detached job may refer to it: what was shipped so far is durable."""
        if digests := list(self.unsynced):
            await self.blobs.sync(digests)
            self.unsynced.difference_update(digests)

    def spawn(self, work: Any) -> asyncio.Future[Any]:
        """Start a coroutine; it is kept until it ends."""
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ask(
        self,
        subject: str,
        message: Msg,
        *,
        timeout_s: float = REQUEST_S,
        patience_s: float = PATIENCE_S,
        most_delay_s: float = 1.0,
    ) -> Any:
        """Ask until there is an answer: everything may be sent again. Raises the exception for a refusal, PoolEnded
        where the script's own pool is gone, PoolUnreachable when patience ends."""
        from fallow.sdk import asking

        return await asking.ask(self, subject, message, timeout_s, patience_s, most_delay_s)

    def answered(self) -> None:
        """The pool has answered."""
        self._trouble_since = 0.0

    def check_alive(self) -> None:
        """Raises PoolEnded where the script's own pool is gone."""
        embedded = self.found.embedded if self.found else None
        if embedded is not None and not embedded.is_alive:
            raise pool_ended()

    def in_trouble(self, now: float) -> None:
        """A request was not answered: says so once, if that lasts."""
        if not self._trouble_since:
            self._trouble_since = now
        elif now - self._trouble_since > NOTICE_AFTER_S and not self._said_trouble and not self.nested:
            self._said_trouble = True
            say("the pool does not answer; what it has is kept, trying on (Ctrl-C gives up)")

    def _blobs_in_trouble(self, words: str) -> None:
        if not self._said_trouble:
            self._said_trouble = True
            say(f"{words.rstrip()} What the pool has is kept, trying on (Ctrl-C gives up).")

    def waits_for_room(self, words: str) -> None:
        """What is to be put has no room: says so, now and then. From any thread."""
        now = time.monotonic()
        if not self.nested and now >= self._say_room_at:
            self._say_room_at = now + NO_ROOM_AGAIN_S
            say(f"{words} Waiting until the pool has made room (Ctrl-C gives up).")

    async def _open(self) -> None:
        try:
            if self.nested:
                await self._open_nested()
            else:
                await self._open_nats()
            self._ticker = asyncio.ensure_future(self._tick())
        except BaseException as error:
            self.closed = True
            _forget(self)
            if self.found and self.found.embedded:
                self.found.embedded.end()
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)

    async def _open_nats(self) -> None:
        assert self.found is not None
        from fallow.sdk.transport import NatsTransport
        from fallow.wire import subjects
        from fallow.wire.blobs import open_blob_client
        from fallow.wire.connection import PING_OFTEN_S, connect
        from fallow.wire.messages import GetPool

        embedded = self.found.embedded
        if embedded is not None:
            # Blocks the loop, which has nothing else to do yet.
            self.found.address = embedded.wait_address()
            remember_for_children(str(self.found.address))
        connection = await connect(self.found.address, f"client {self.id}", ping_every_s=PING_OFTEN_S)
        self.transport = NatsTransport(connection)
        connection.on_reconnect.append(self._reconnected)
        await connection.subscribe(subjects.client(self.id), self._on_message)
        # Asked in quick succession: the coordinator of a pool that is starting may be there at any moment.
        self.info = await self.ask(
            subjects.POOL, GetPool(), timeout_s=2.0, patience_s=FIRST_ANSWER_S, most_delay_s=0.01
        )
        self.blobs = await open_blob_client(connection, self.info, say=self._blobs_in_trouble)
        if embedded is not None:
            what = "notebook" if "IPython" in sys.modules and _is_notebook() else "script"
            say(f"no pool is running, so this {what} started one of its own; it ends with the {what}.")

    async def _open_nested(self) -> None:
        import msgspec

        from fallow.sdk.nested import NestedBlobs
        from fallow.sdk.transport import BridgeTransport
        from fallow.wire import subjects
        from fallow.wire.messages import GetPool

        transport = BridgeTransport(self._bridge, self._on_message)
        self.transport = transport
        known = msgspec.msgpack.decode(await transport.ask("pool", b""))
        self.id = ClientId(known["client_id"])
        self.info = await self.ask(subjects.POOL, GetPool(), patience_s=FIRST_ANSWER_S)
        self.blobs = NestedBlobs(transport)

    def _on_message(self, message: Any, reply: str) -> None:
        target = self.attached.get(getattr(message, "job_id", JobId("")))
        if target is not None:
            target.message(message)
        elif reply:  # an owner asks whether this script is there still
            self.transport.send(reply, message)

    async def _tick(self) -> None:
        from fallow.wire import subjects
        from fallow.wire.messages import Ping

        loop = asyncio.get_running_loop()
        pinged = loop.time()
        while True:
            await asyncio.sleep(SYNC_S)
            now = loop.time()
            if self.info.slots == 0 or now - pinged >= PING_S:
                self.spawn(self._refresh())
            for attached in list(self.attached.values()):
                attached.tick(now)
            if now - pinged >= PING_S:
                pinged = now
                for job_id in list(self.attached):
                    self.transport.send(subjects.job(job_id), Ping(job_id, self.id))

    def _reconnected(self) -> None:
        """What was on its way to this client, or from it, is lost."""
        now = asyncio.get_running_loop().time()
        for attached in list(self.attached.values()):
            attached.tick(now)

    async def _refresh(self) -> None:
        """Nodes come and go: what the pool has now."""
        from fallow.wire import subjects
        from fallow.wire.messages import GetPool, PoolInfo

        with contextlib.suppress(TimeoutError):
            info = await self.transport.request(subjects.POOL, GetPool(), REQUEST_S)
            if isinstance(info, PoolInfo):
                self.info = info

    def slots(self, wait_s: float = 10.0) -> int:
        """Slots of the pool, at least one; waits a little for the first node of a pool that has just started."""
        deadline = time.monotonic() + wait_s
        while True:
            self.submit_blocking(self.ready()._refresh())
            if self.info.slots > 0 or time.monotonic() > deadline:
                return max(1, self.info.slots)
            time.sleep(0.02)

    def cancel_soon(self, job_id: JobId, reason: str, settled: bool = False) -> None:
        """Ask for the end of a job without waiting for it; should the script end first, `close` asks instead."""
        self.cancelling[job_id] = (reason, settled)
        if not self.closed:
            self.spawn(self.cancel_job(job_id, reason, settled)).add_done_callback(
                lambda asked: None if asked.cancelled() else self.cancelling.pop(job_id, None)
            )

    async def cancel_job(self, job_id: JobId, reason: str, settled: bool = False, patience_s: float = 10.0) -> None:
        """Ask for the end of a job, without minding how it goes: a job whose client is gone ends by itself."""
        from fallow.wire import subjects
        from fallow.wire.messages import CancelJob

        if script_end.is_interrupted:
            reason = "its script was interrupted"
        with contextlib.suppress(FallowError):
            message = CancelJob(job_id, reason, settled)
            await self.ask(subjects.job(job_id), message, timeout_s=min(1.0, patience_s), patience_s=patience_s)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Cancel what is attached, disconnect, end the embedded pool. From any thread but the loop's."""
        if self.closed or self.pid != os.getpid():
            return
        self.closed = True
        embedded = self.found.embedded if self.found else None
        error = pool_ended() if embedded else PoolUnreachable("the script is ending.")
        with contextlib.suppress(Exception):
            self.thread.submit(self._close(error, cancel=embedded is None)).result(EXIT_CANCEL_S + 3.0)
        if embedded is not None:
            embedded.end()
        self.thread.stop()

    async def _close(self, error: BaseException, cancel: bool) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        jobs = list(self.attached.values())
        if cancel and hasattr(self, "transport"):
            endings = [(job.job_id, ("its script ended", job.settled())) for job in jobs] + [*self.cancelling.items()]
            for start in range(0, len(endings), 64):
                part = [self.cancel_job(job_id, *how, EXIT_CANCEL_S) for job_id, how in endings[start : start + 64]]
                await asyncio.gather(*part, return_exceptions=True)
        for job in jobs:
            job.pool_closed(error)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        if hasattr(self, "blobs"):
            await self.blobs.close()
        if hasattr(self, "transport"):
            await self.transport.close()


# ---------------------------------------------------------------- the one of this process

_lock = threading.Lock()
_client: Client | None = None
_hooked = False


def get_client() -> Client:
    """This process's client, connected or about to be. In a task: the one that goes through the agent."""
    global _client
    client = _client
    if client is not None and not client.closed:
        return client
    with _lock:
        if _client is None or _client.closed:
            script_end.hook_errors()
            script_end.say_cancelled_by(_cancelled_by_interrupt)
            _client = Client(current_bridge())
            _hook_exit()  # after what opening it has registered: what comes last is called first
        return _client


def _is_notebook() -> bool:
    from fallow.sdk.notebook import is_notebook

    return is_notebook()


def current_bridge() -> Any:
    """The bridge to the agent where this code runs inside a task, else None."""
    if "FALLOW_WORKER" not in os.environ:
        return None
    try:
        from fallow.worker import nested
    except ImportError:
        return None
    return nested.current()


def disconnect() -> None:
    """Close this process's client (at the end of the script; or before a test's next pool)."""
    global _client
    with _lock:
        client, _client = _client, None
    if client is not None:
        client.close()


def _forget(client: Client) -> None:
    global _client
    if _client is client:
        _client = None


def _at_exit() -> None:
    try:
        _end_script()
    except KeyboardInterrupt:
        # A second Ctrl-C waits for nothing: a pool of the script's own ends with it, another ends what it no longer
        # hears of.
        script_end.is_interrupted = True
    script_end.keep_exit_code()


def _end_script() -> None:
    client = _client
    if client is not None and not client.closed and not script_end.is_interrupted:
        # As the standard executors do: what was submitted is done before the script ends.
        for executor in list(client.executors):
            with contextlib.suppress(Exception):
                executor.shutdown()
    if client is not None and not client.closed and client.last_output:
        # Lines that tasks printed last may still be on their way.
        time.sleep(max(0.0, min(0.2, client.last_output + 0.2 - time.monotonic())))
    disconnect()


def _hook_exit() -> None:
    global _hooked
    if _hooked:
        return
    _hooked = True
    atexit.register(_at_exit)
    # Thread pools refuse work once the threads are being joined, which is before atexit; ours is needed to the end.
    with contextlib.suppress(AttributeError, RuntimeError):
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    """A forked child has no loop thread: it starts anew, and must not hold the parent's pool alive."""
    global _client, _lock
    client, _client, _lock = _client, None, threading.Lock()
    if client is not None:
        client.closed = True
        if client.found and client.found.embedded:
            client.found.embedded.abandon()


def _cancelled_by_interrupt() -> list[str] | None:
    client = _client
    if client is None:
        return None
    jobs = list(client.attached.values())
    bars = [bar for job in jobs if (bar := getattr(job, "progress", None)) is not None]
    for bar in bars:
        bar.close()
    for bar in bars:  # what is said now stands below them
        bar.join(BARS_END_S)
    return sorted({job.describe() for job in jobs})
