"""What passes over the sockets between agent, zygote and worker: msgspec structs in MessagePack, in frames.

The agent translates these from and to its own types (agent.worker_api): a worker knows nothing of the network.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fallow.model.ids import Interval
from fallow.model.job import INLINE_LIMIT_BYTES, Blob, RetryPolicy


class _Frame(Struct, array_like=True, tag=True, gc=False):
    pass


class OrderPage(Struct, frozen=True, array_like=True, gc=False):
    """Inputs of tasks [start, stop): the page's bytes, or a file to map."""

    start: int
    stop: int
    data: bytes | None
    path: str = ""
    singly: bool = False
    """Unpickle one input after the other: a worker has died while it unpickled them together."""


class WrittenPage(Struct, frozen=True, array_like=True, gc=False):
    """Results of tasks [start, stop): inline bytes, or a file in the scratch folder."""

    start: int
    stop: int
    digest: str
    size: int
    data: bytes | None
    path: str = ""
    failed_count: int = 0
    failed: tuple[int, ...] = ()


# ---------------------------------------------------------------- agent -> worker


class Run(_Frame):
    """Begin an order. `function`: the payload, where the worker does not hold the job's yet."""

    job_id: str
    token: tuple[int, int]
    start: int
    stop: int
    budget_s: float
    pages: tuple[OrderPage, ...]
    function: bytes | None = None
    attempt: int = 0
    retry: RetryPolicy = RetryPolicy()
    reduce: bool = False
    checkpoints: tuple[tuple[int, Blob], ...] = ()
    """(task, its saved state)"""
    plain: bool = False
    """Results and failures go out as plain data (see wire.plain)."""
    files_from: int = INLINE_LIMIT_BYTES
    """Pages of results of more bytes than this go into files."""


class Tell(_Frame):
    """A message for a nested client."""

    body: bytes


class Answer(_Frame):
    serial: int
    body: bytes


class Stop(_Frame):
    """End, after the current order."""


# ---------------------------------------------------------------- worker -> agent


class Report(_Frame):
    token: tuple[int, int]
    results: tuple[WrittenPage, ...] = ()
    give_back: tuple[Interval, ...] = ()
    retry_later: tuple[tuple[int, int, float], ...] = ()
    """(index, attempt, delay in seconds)"""
    ended: bool = False
    run_s: float = 0.0
    cpu_s: float = 0.0
    reduced: bool = False
    no_room: tuple[tuple[int, int, str], ...] = ()
    """(task, bytes of its result, words): the disk had no room for it, so that it is to run elsewhere"""


class Ask(_Frame):
    serial: int
    kind: str
    body: bytes


class SetupFailed(_Frame):
    """The function could not be loaded; the worker ends after this."""

    message: str
    detail: str


# ---------------------------------------------------------------- agent <-> zygote


class Spawn(_Frame):
    """Fork a worker. Comes with four descriptors: socket, shared map, pipes for stdout and stderr."""

    serial: int
    cpu: int
    scratch: str
    sys_path: tuple[str, ...] = ()
    cwd: str = ""
    environment: dict[str, str] = {}
    """Variables to set before anything of the customer's is loaded."""


class Kill(_Frame):
    """SIGKILL to the worker and all of its group. `show`: not yet, but have it print where it is. `ask`: SIGTERM to
    the group instead, so that programs that a task has started may tidy up."""

    serial: int
    show: bool = False
    ask: bool = False


class Hold(_Frame):
    """SIGSTOP to the worker and all of its group, or SIGCONT."""

    serial: int
    on: bool


class Ready(_Frame):
    pid: int


class Spawned(_Frame):
    serial: int
    pid: int


class Exited(_Frame):
    """status: as os.waitstatus_to_exitcode gives it (negative: signal). oom: the kernel killed some process for
    want of memory while this one lived."""

    serial: int
    status: int
    oom: bool


ToWorker = Run | Tell | Answer | Stop
FromWorker = Report | Ask | SetupFailed
ToZygote = Spawn | Kill | Hold
FromZygote = Ready | Spawned | Exited

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_to_worker: Any = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker: Any = msgspec.msgpack.Decoder(FromWorker).decode
decode_to_zygote: Any = msgspec.msgpack.Decoder(ToZygote).decode
decode_from_zygote: Any = msgspec.msgpack.Decoder(FromZygote).decode

WORDS = 8
"""The shared map holds int64 words, written by one side each and never locked:"""
REACH = 0
"""worker: short tasks run in blocks: any of [INDEX, REACH) may be in progress; at most INDEX + 1: INDEX alone"""
INDEX = 1
"""worker: task in progress; -1 before the first of an order; stays at the last one when that is done"""
LIMIT = 2
"""agent: begin no task at or after this"""
BEGUN = 3
"""worker: grows when the same index begins anew (a retry)"""
ENCODING = 4
"""worker: first index of the results that are being encoded by the main thread; else -1"""
PHASE = 5
"""worker: one of the numbers below"""
IDLE, LOADING, RUNNING, UNPICKLING = 0, 1, 2, 3
"""UNPICKLING: the inputs of a page together; INDEX is the first of them, but it may be any that fails"""
NOTICE = 6
"""agent: the machine's owner wants it back, and the worker is killed at this time of CLOCK_MONOTONIC, in ns; else 0"""
SETTLED = 7
"""worker: 1 when the task in progress has saved what it wants to keep, and need not be waited for any more"""
MAP_BYTES = WORDS * 8

LOADED_FUNCTIONS = 4
"""A worker keeps so many functions loaded, least recently used first out; the agent keeps the same account."""

SHOW_SIGNAL = "SIGUSR2"
"""Has a worker print the stack of its main thread to descriptor 2, even while the interpreter is held."""

LABEL = b"\x1e"
"""In the output pipes: a line that a task printed through sys.stdout begins with LABEL, index, LABEL_END."""
LABEL_END = b"\x1f"
