"""One worker as the agent sees it: orders in, reports and output out, a watch on time and memory, its end in words."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import msgspec

from fallow.agent.exit_words import death_of, task_stack
from fallow.agent.outgoing import Outgoing
from fallow.agent.worker_api import OutputLine, RunOrder, WorkerCallbacks
from fallow.agent.worker_files import WorkerFiles, WorkerMap
from fallow.agent.worker_output import OutputPipe
from fallow.agent.worker_reports import report_of
from fallow.model.ids import JobId, Token
from fallow.model.job import INLINE_LIMIT_BYTES, JobSpec
from fallow.model.tiers import Tier
from fallow.wire.messages import Death
from fallow.worker import orders
from fallow.worker.block import BLOCK_TASKS
from fallow.worker.frames import FrameReader, frame

if TYPE_CHECKING:
    from fallow.agent.confined import Confined
    from fallow.agent.doubts import Doubts
    from fallow.agent.zygote import Zygote

POLL_S = 0.05
POLL_MOST_S = 1.0
"""How often the shared maps are looked at while tasks run: rarely while nothing is near a limit."""
TIMEOUT_PRECISION = 0.05
ASKED_S = 0.1
"""From SIGTERM to SIGKILL for a task that is stopped for the machine's owner, and for programs that it has started."""
SETTLE_POLL_S = 0.01
SHOW_S = 0.05
"""What a worker that is killed for its time limit gets to print its stack."""
STOP_GRACE_S = 10.0
"""A worker that was told to stop, and runs nothing, is killed after this (its exit methods may take a while)."""
_READS_AT_ONCE = 8
DRAIN_READS = 4096
UNREAD_BYTES = 64 * 1024 * 1024
"""What may wait for a sandboxed worker that does not read."""
UNREAD_ANSWERS = 512
"""As many of its requests as may wait for their answers: each has a thread that reads."""
HEARD_AT_ONCE = 64
"""Messages of a sandboxed worker in one turn of the loop: others have their turn in between."""


class Process:
    """A WorkerProcess (see worker_api)."""

    def __init__(
        self,
        zygote: Zygote,
        serial: int,
        slot: int,
        callbacks: WorkerCallbacks,
        sock: socket.socket,
        shared: WorkerMap,
        out: int,
        error: int,
        scratch: str,
        confined: Confined | None = None,
    ) -> None:
        self.slot = slot
        self.confined = confined
        """What its sandbox sees; None for a plain process."""
        self._doubts: Doubts | None = None
        self._deaf = False
        self._zygote = zygote
        self._serial = serial
        self._callbacks = callbacks
        self._sock = sock
        self._map = shared
        self._words = shared.words
        self._files = WorkerFiles(confined, scratch, serial)
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        if confined is not None:
            from fallow.agent.doubts import FRAME_BYTES, Doubts

            self._doubts = Doubts()
            self._reader = FrameReader(FRAME_BYTES)
        self._outgoing = Outgoing(sock, self._loop)
        self._unheard: deque[bytes] = deque()
        """What a sandboxed worker has said beyond what is heard in one turn of the loop."""
        self._pipes = (OutputPipe(out, "stdout"), OutputPipe(error, "stderr"))
        self._pid = 0
        self.inner_pid = 0
        """As its zygote numbers it."""
        self._was_started = False
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._job_id: JobId | None = None
        self._token: Token | None = None
        self._spec: JobSpec | None = None
        self._limit = 0
        self._seen = (-1, 0)
        self._since = 0.0
        self._held_since = 0.0
        """0: it is not held."""
        self._verdict: tuple[str, str] | None = None
        self._hung: tuple[int, int] | None = None
        self._setup: Death | None = None
        self._stopping = False
        self._until_s = 0.0
        """When it is to be gone, because the machine's owner is back; 0: he is not."""
        self._preempt_words = ""
        self.lost_s = 0.0
        """Run time of the task in progress, since its state was last saved, when the process ended."""
        self.was_unpickling = False
        self.saved_s = 0.0
        """When a checkpoint of the task in progress was saved."""
        self._grace: asyncio.TimerHandle | None = None
        self._gone = False
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Done when the process is gone: its status, negative for a signal."""
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)
        for pipe in self._pipes:
            self._loop.add_reader(pipe.descriptor, self._printed, pipe)

    # ------------------------------------------------ what the slot uses

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def job_id(self) -> JobId | None:
        return self._job_id

    @property
    def running(self) -> bool:
        """It has an order."""
        return self._token is not None

    @property
    def gone(self) -> bool:
        return self._gone

    def has_loaded(self, job_id: JobId) -> bool:
        """`run` needs no payload for this job (a worker keeps a few functions loaded)."""
        return job_id in self._loaded

    def run(self, spec: JobSpec, function: bytes | None, order: RunOrder) -> None:
        """Begin an order. Raises ValueError when the payload or a page is needed and missing, RuntimeError while one
        runs."""
        if self._token is not None:
            raise RuntimeError(f"worker {self._pid} still runs order {self._token}")
        for page in order.pages:
            if page.page.data is None and page.start not in order.paths:
                raise ValueError(f"order {order.token} has neither bytes nor a file for the page at {page.start}")
        payload = self._account(spec.job_id, function)
        words = self._words
        words[orders.INDEX] = words[orders.REACH] = words[orders.ENCODING] = -1
        words[orders.LIMIT] = self._limit = order.stop
        self._token, self._spec, self._job_id = order.token, spec, spec.job_id
        self._seen, self._since = (-1, words[orders.BEGUN]), time.monotonic()
        paths = self._files.show(order.paths)
        if self._doubts is not None:
            self._doubts.begin(order.token, order.start, order.stop)
        for pipe in self._pipes:
            pipe.last_words.clear()
        pages = tuple(
            orders.OrderPage(p.start, p.stop, p.page.data, paths.get(p.start, ""), p.start in order.singly)
            for p in order.pages
        )
        self._send(
            orders.Run(
                spec.job_id,
                order.token,
                order.start,
                order.stop,
                order.budget_s,
                pages,
                payload,
                order.attempt,
                spec.retry,
                spec.reduce,
                order.checkpoints,
                spec.least_tier >= Tier.ISOLATED,
                order.files_from if self.confined is None else INLINE_LIMIT_BYTES,
            )
        )
        self._zygote.watch(spec.timeout_s, bool(spec.resources.memory_bytes))

    def _account(self, job_id: JobId, function: bytes | None) -> bytes | None:
        """Keep the worker's account of loaded functions; returns the payload if it must be sent."""
        if job_id in self._loaded:
            self._loaded.move_to_end(job_id)
            return None
        if function is None:
            raise ValueError(f"worker {self._pid} has not loaded job {job_id}: its payload is needed")
        if len(self._loaded) >= orders.LOADED_FUNCTIONS:
            self._loaded.popitem(last=False)
        self._loaded[job_id] = None
        return function

    def limit(self, token: Token, stop: int) -> None:
        """See worker_api."""
        if token == self._token:
            self._limit = min(stop, self._limit)
            self._words[orders.LIMIT] = min(stop, self._words[orders.LIMIT])

    def progress(self) -> tuple[Token | None, int, float]:
        """See worker_api. The time is known to POLL_MOST_S."""
        if self._token is None:
            return None, -1, 0.0
        now = time.monotonic()
        if self._observe(now) < 0:
            return self._token, -1, 0.0
        index, count = self._in_progress()
        return self._token, index + count - 1, now - self._since

    def tell(self, body: bytes) -> None:
        """See worker_api."""
        self._send(orders.Tell(body))

    def kill(self, kind: str, message: str) -> None:
        """See worker_api. The first verdict counts."""
        if self._verdict is None and not self._gone:
            self._verdict = (kind, message)
            self._zygote.kill_worker(self._serial)

    def hold(self, on: bool) -> None:
        """Stop it where it is, or let it go on. The time meanwhile does not count against the task's limit."""
        if self._gone or not self._pid or on == (self._held_since > 0) or (on and self._until_s):
            return
        now = time.monotonic()
        if on:
            self._observe(now)
            self._held_since = now
        else:
            self._since += now - max(self._since, self._held_since)
            self._held_since = 0.0
        self._zygote.hold_worker(self._serial, on)

    def stop(self) -> None:
        """See worker_api. Killed when it does not end within STOP_GRACE_S after its order."""
        if not self._stopping and not self._gone:
            self._stopping = True
            self._send(orders.Stop())
            self._begin_grace()

    def preempt(self, reason: str, grace_s: float) -> None:
        """See worker_api."""
        if self._gone or self._until_s:
            return
        self.hold(False)  # what stands still can save nothing
        self._preempt_words = reason
        self._until_s = time.monotonic() + grace_s
        self._words[orders.NOTICE] = int(self._until_s * 1e9)
        if self._token is None:
            self.stop()
        self._look_settled()

    def _look_settled(self) -> None:
        """Wait for the task to save its state, or to end, but no longer than until the grace is over."""
        if self._gone:
            return
        now = time.monotonic()
        if self._token is None:
            self.stop()  # exit methods run, and may take what is left of the grace
        if now < self._until_s - ASKED_S and not (self._token is not None and self._words[orders.SETTLED]):
            self._loop.call_later(SETTLE_POLL_S, self._look_settled)
            return
        if self._verdict is None:
            self._verdict = ("preempted", self._preempt_words)
        self._zygote.ask_worker(self._serial)
        self._loop.call_later(ASKED_S, self._zygote.kill_worker, self._serial)

    def _begin_grace(self) -> None:
        if self._stopping and self._token is None and self._grace is None and not self._gone:
            self._grace = self._loop.call_later(STOP_GRACE_S, self.kill, "worker_lost", "the worker did not stop")

    # ------------------------------------------------ the watch

    def check(self) -> float:
        """Called by the zygote's timer while an order runs. Returns within how many seconds it wants the next look."""
        spec = self._spec
        if spec is None or self._token is None or self._verdict is not None:
            return POLL_MOST_S
        now, wait_s = self._held_since or time.monotonic(), POLL_MOST_S
        index = self._observe(now)
        if spec.timeout_s > 0:
            if (left_s := spec.timeout_s - (now - self._since if index >= 0 else 0.0)) < 0:
                self._time_out(spec.timeout_s)
                return POLL_MOST_S
            wait_s = min(wait_s, max(POLL_S, spec.timeout_s * TIMEOUT_PRECISION), left_s + 0.001)
        if (limit := spec.resources.memory_bytes) and (used := self._zygote.private_bytes(self)) > limit:
            self.kill("memory", f"the worker used {used:,} bytes of memory; the limit is {limit:,}")
        return min(wait_s, POLL_S) if limit else wait_s

    def _time_out(self, limit_s: float) -> None:
        """Kill it, after a moment in which it can say where it hangs. (Being asked may wake it: the verdict stands.)"""
        token = self._token
        self._drain()
        if self._token is not token or self._verdict is not None:
            return  # it has ended in time, and that was not heard yet
        self._hung = index, count = self._in_progress()
        self._stop_hearing()
        self._pipes[1].muted = True
        if count == 1:
            self._verdict = ("timeout", f"task {index} ran longer than its time limit of {limit_s:g} s")
        else:  # it has not even said which: each runs again, alone
            words = f"a task from {index} to {index + count - 1} ran longer than its time limit of {limit_s:g} s"
            self._verdict = ("worker_lost", words)
        self._zygote.show_worker(self._serial)
        self._loop.call_later(SHOW_S, self._zygote.kill_worker, self._serial)

    def _observe(self, now: float) -> int:
        words = self._words
        seen = (words[orders.INDEX], words[orders.BEGUN])
        if seen != self._seen:
            self._seen, self._since = seen, now
        return seen[0]

    def _in_progress(self) -> tuple[int, int]:
        """(first, count) of the tasks that may be in progress."""
        index = self._words[orders.INDEX]
        return index, min(max(1, self._words[orders.REACH] - index), 2 * BLOCK_TASKS)

    def _suspects(self) -> tuple[int, int]:
        encoding = self._words[orders.ENCODING]
        return (encoding, 1) if encoding >= 0 else self._in_progress()

    # ------------------------------------------------ the socket

    def _send(self, message: orders.ToWorker, is_answer: bool = False) -> None:
        if self._gone or self._deaf:
            return
        self._outgoing.put(frame(orders.encode(message)), is_answer)
        if self._doubts is not None and (
            self._outgoing.unread_bytes > UNREAD_BYTES or self._outgoing.unread_answers > UNREAD_ANSWERS
        ):
            self._misbehaved("it asks without reading the answers")

    def _misbehaved(self, words: str) -> None:
        """Nothing that Fallow's own worker does: something in the sandbox speaks in its place."""
        self._stop_hearing()
        self._unheard.clear()
        self.kill("worker_lost", f"the worker broke its protocol with this node: {words}")

    def _stop_hearing(self) -> None:
        """What it says from here on does not count."""
        with contextlib.suppress(ValueError, OSError):
            self._loop.remove_reader(self._sock.fileno())
        self._deaf = True

    def _readable(self) -> None:
        try:
            if self._doubts is not None:
                self._unheard.extend(self._reader.receive(self._sock))
                self._hear(HEARD_AT_ONCE)
                if self._unheard:  # no more is read before these
                    self._loop.remove_reader(self._sock.fileno())
                    self._loop.call_soon(self._hear_on)
                return
            for _ in range(_READS_AT_ONCE):
                for body in self._reader.receive(self._sock):
                    self._heard(orders.decode_from_worker(body))
                if self._gone or not self._reader.may_have_more:
                    return
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._loop.remove_reader(self._sock.fileno())
            self._zygote.expect_end(self._serial)
        except (ValueError, msgspec.DecodeError) as error:
            self._misbehaved(str(error))

    def _hear(self, most: int) -> None:
        """Raises msgspec.DecodeError. What comes after a breach of the protocol counts for nothing."""
        while most > 0 and self._unheard:
            most -= 1
            self._heard(orders.decode_from_worker(self._unheard.popleft()))

    def _hear_on(self) -> None:
        if self._gone:
            return
        try:
            self._hear(HEARD_AT_ONCE)
        except (ValueError, msgspec.DecodeError) as error:
            self._misbehaved(str(error))
        if self._unheard:
            self._loop.call_soon(self._hear_on)
        elif not self._deaf:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _heard(self, message: orders.FromWorker) -> None:
        if self._doubts is not None and (words := self._doubts.about(message)):
            self._misbehaved(words)
            return
        if isinstance(message, orders.Report):
            self._reported(message)
        elif isinstance(message, orders.Ask):
            serial = message.serial
            doubts = self._doubts

            def answer(body: bytes) -> None:
                if doubts is not None:
                    doubts.answered()
                self._send(orders.Answer(serial, body), is_answer=True)

            self._callbacks.asked(message.kind, message.body, answer)
        else:
            self._setup = Death(-1, "setup", message.message, message.detail)

    def _reported(self, report: orders.Report) -> None:
        for pipe in self._pipes:
            self._hand_on(pipe.drain(self._index()) if report.ended else pipe.read(self._index()))
        # What our own limit cut off is given back by whoever set it.
        give_back = tuple((start, min(stop, self._limit)) for start, stop in report.give_back if start < self._limit)
        if report.ended and report.token == self._token:
            self._token = None
            self._begin_grace()
            self._files.hide()
        self._callbacks.reported(report_of(report, give_back, self._files))

    # ------------------------------------------------ output

    def _index(self) -> int:
        return self._words[orders.INDEX] if self._token is not None else -1

    def _printed(self, pipe: OutputPipe) -> None:
        self._hand_on(pipe.read(self._index()))

    def _hand_on(self, lines: list[OutputLine]) -> None:
        if lines:
            self._callbacks.printed(lines)

    # ------------------------------------------------ start and end

    def started(self, pid: int, inner_pid: int) -> None:
        """The zygote has forked it, under this number of its own. 0: it is gone again."""
        self._pid = pid
        self.inner_pid = inner_pid
        self._was_started = True

    def ended(self, status: int, oom: bool, words: str) -> None:
        """The process is gone (`words`: because of what, where it is known). Hands on what it sent before that."""
        if self._gone:
            return
        self._drain()
        self._gone = True
        for pipe in self._pipes:
            self._hand_on(pipe.drain(self._index()))
        last_words = list(self._pipes[1].last_words)
        self._close()
        if not self.exited.done():
            self.exited.set_result(status)
        if not self._was_started or (self._stopping and self._token is None):
            return  # it never was, or it ended as it was told
        if self._token is not None and self._observe(time.monotonic()) >= 0:
            self.lost_s = max(0.0, time.monotonic() - max(self._since, self.saved_s))
        token, self._token = self._token, None
        self.was_unpickling = token is not None and self._words[orders.PHASE] == orders.UNPICKLING
        self._callbacks.died(token, self._death(status, oom, words, task_stack(last_words), token))

    def _death(self, status: int, oom: bool, words: str, detail: str, token: Token | None) -> Death:
        if self._setup is not None:
            return self._setup
        index, count = -1, 1
        if token is not None:
            index, count = self._hung or self._suspects()
        if self._verdict is not None:
            kind, message = self._verdict
            return Death(index, kind, message, detail, count)
        death = death_of(status, oom, self._words[orders.PHASE], index, detail)
        return Death(death.index, death.kind, words or death.message, death.detail, count if death.index >= 0 else 1)

    def _drain(self) -> None:
        if self._deaf:
            return
        with contextlib.suppress(BlockingIOError, EOFError, OSError, ValueError, msgspec.DecodeError):
            self._hear(len(self._unheard))
            # (Something that it started may hold the socket and go on writing.)
            for _ in range(DRAIN_READS):
                if self._deaf:
                    return
                self._unheard.extend(self._reader.receive(self._sock))
                self._hear(len(self._unheard))

    def _close(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._outgoing.close()
        self._unheard.clear()
        self._sock.close()
        for pipe in self._pipes:
            self._loop.remove_reader(pipe.descriptor)
            pipe.close()
        self._files.remove()
