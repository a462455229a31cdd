"""What passes between a slot (agent shell) and its worker process."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from fallow.model.ids import Interval, JobId, Token
from fallow.model.job import INLINE_LIMIT_BYTES, Blob, JobSpec
from fallow.wire.messages import Death, InputPage, ResultPage, RetryLater

if TYPE_CHECKING:
    from fallow.agent.confined import Confined


class RunOrder(Struct, frozen=True):
    """A lease as a worker gets it. Pages of [start, stop): inline bytes, or a file to map (`paths`, by page start)."""

    token: Token
    start: int
    stop: int
    budget_s: float
    pages: tuple[InputPage, ...]
    paths: dict[int, str] = {}
    alone: bool = False
    attempt: int = 0
    checkpoints: tuple[tuple[int, Blob], ...] = ()
    """(task, what it saved of its state when it was begun before)"""
    files_from: int = INLINE_LIMIT_BYTES
    """Pages of results of more bytes than this are handed in as files."""
    singly: frozenset[int] = frozenset()
    """Starts of the pages whose inputs are unpickled one after the other."""


class Report(Struct, frozen=True):
    """What a worker hands in of its order; `ended` with the last one. Results over the inline limit lie in files:
    their Blob has no data, and `files` has the path by digest (the receiver moves or deletes the file)."""

    token: Token
    results: tuple[ResultPage, ...] = ()
    files: dict[str, str] = {}
    give_back: tuple[Interval, ...] = ()
    retry_later: tuple[RetryLater, ...] = ()
    ended: bool = False
    run_s: float = 0.0
    cpu_s: float = 0.0
    reduced: bool = False
    deaths: tuple[Death, ...] = ()
    """Of kind 'no_room': tasks whose results could not be kept on this node's disk."""
    no_room_bytes: int = 0
    """The largest of these."""


class OutputLine(Struct, frozen=True):
    """A line that a task printed (index -1: outside a task). `truncated` lines say so in their text."""

    index: int
    stream: str
    text: str


class WorkerCallbacks(Protocol):
    """Called on the agent's event loop."""

    def reported(self, report: Report) -> None: ...

    def printed(self, lines: list[OutputLine]) -> None: ...

    def died(self, token: Token | None, death: Death) -> None:
        """The process is gone. `token`: the order it was on. What it did not report of it is lost."""

    def asked(self, kind: str, body: bytes, answer: Callable[[bytes], None]) -> None:
        """The task wants something of the agent: kind 'request' (body: msgpack [subject, bytes, timeout_s], a nested
        SDK request to relay over NATS), 'publish' (msgpack [subject, bytes]), 'blob' (digest and size: answer is the
        path of a local file), 'checkpoint' (msgpack [token, index, Blob, path]: keep this as the task's state, its
        bytes inline or in the file, which is moved; the answer is empty where it is not kept), 'put' (msgpack [path,
        digest, size]: move the file into the blob store), 'waiting' (msgpack bool: the task waits for nested work and
        lends its slot; the answer is msgpack bool: lent), 'pool' (answer: msgpack of what a nested SDK must know)."""


class WorkerProcess(Protocol):
    """One warm worker. Made by agent.worker_process.start_worker(...)."""

    @property
    def pid(self) -> int: ...

    @property
    def running(self) -> bool:
        """It has an order."""

    @property
    def job_id(self) -> JobId | None:
        """What it has loaded."""

    confined: Confined | None
    """What its sandbox sees of this machine; None for a plain process."""

    def run(self, spec: JobSpec, function: bytes | None, order: RunOrder) -> None:
        """Begin an order (one at a time). `function`: the payload, needed when `spec.job_id` is not loaded yet."""

    def limit(self, token: Token, stop: int) -> None:
        """Begin no task at or after `stop` of the current order. What this cuts off is NOT in the worker's give_back:
        the caller gives it back itself, after it has read `progress()` a millisecond later or more."""

    def progress(self) -> tuple[Token | None, int, float]:
        """(current order, index in progress or -1, seconds that it has run), from shared memory; no message."""

    def tell(self, body: bytes) -> None:
        """Pass a message that arrived for a nested client (CallResults, hints) to the worker."""

    def kill(self, kind: str, message: str) -> None:
        """SIGKILL at once; `died` follows with this kind and message."""

    def hold(self, on: bool) -> None:
        """Stop it where it is, or let it go on; the time meanwhile does not count against the task's limit."""

    saved_s: float
    """When (monotonic) a checkpoint of the task in progress was last saved."""

    lost_s: float
    """Seconds of the task in progress since its state was last saved, once the process has ended."""

    was_unpickling: bool
    """It ended while it unpickled the inputs of a page together: any of them may be to blame."""

    exited: Future[int]
    """Done when the process is gone."""

    def preempt(self, reason: str, grace_s: float) -> None:
        """The machine's owner is back: tell the task, and end the worker and all that it has started as soon as the
        task has saved its state or ended, in `grace_s` at the latest. Where that cuts an order short, `died` follows
        with the kind 'preempted'."""

    def stop(self) -> None:
        """No more orders: end after the current one; `died` does not follow."""
