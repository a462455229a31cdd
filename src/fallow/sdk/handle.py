"""Handles of jobs: what they are doing, what came of them, from this script or from any other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from fallow.model.errors import JobError, SettingError
from fallow.model.ids import ClientId, JobId
from fallow.model.job import Blob, JobInfo, JobKind, JobSpec
from fallow.sdk.client import Client, get_client
from fallow.sdk.function import Twin

if TYPE_CHECKING:
    from fallow.model.node import NodeInfo
    from fallow.sdk.mapjob import MapJob
    from fallow.wire.messages import LogLine


END_LOST_S = 2.0
"""An answer about the job's end that is so late was lost: it is asked for again."""
SINGLE = "()"
"""Ends the name of a job that is one spawned call, so that whoever finds it again gets its value, not a list."""


class JobHandle:
    """One job of the pool. `id` finds it again with fallow.job(id), from any process, while the pool keeps it."""

    def __init__(
        self,
        client: Client,
        job_id: JobId,
        name: str,
        *,
        job: MapJob | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self.id = job_id
        self.name = name
        self._client = client
        self._job = job
        self._after = after
        self.get = Twin(self._get, self._get_aio)
        self.results = Twin(self._results, self._results_aio)

    def __repr__(self) -> str:
        return f"<job {self.name!r} {self.id}>"

    def __reduce__(self) -> Any:
        return job, (self.id,)

    # ------------------------------------------------------------ results

    def _get(self, timeout: float | None = None) -> Any:
        """What the spawned call returned, or the list of a map's results; raises what a task raised.

        timeout: seconds after which TimeoutError is raised; the job goes on."""
        values = list(self._reader(0, None, False, timeout))
        self._finished()
        if not self.name.endswith(SINGLE):
            return values
        if not values:
            raise JobError(f"{self.name} ({self.id}) ended without a result.")
        return values[0]

    async def _get_aio(self, timeout: float | None = None) -> Any:
        import asyncio

        return await asyncio.to_thread(self._get, timeout)

    def _results(self, start: int = 0, stop: int | None = None, *, return_exceptions: bool = False) -> Iterator[Any]:
        """Results by index, in order, those of tasks [start, stop); waits for those that are not there yet."""
        if start < 0 or (stop is not None and stop < start):
            raise SettingError(f"results({start}, {stop}): give 0 <= start <= stop.")
        return self._reader(start, stop, return_exceptions, None)

    async def _results_aio(
        self, start: int = 0, stop: int | None = None, *, return_exceptions: bool = False
    ) -> AsyncIterator[Any]:
        from fallow.sdk.results import Reading, iterate_async

        stream = self._stream(start, stop)
        async for item in iterate_async(stream, Reading(self.name, return_exceptions)):
            yield item

    def result(self, index: int, timeout: float | None = None) -> Any:
        """The result of one task; raises what it raised. timeout: seconds, then TimeoutError."""
        for item in self._reader(index, index + 1, False, timeout):
            return item
        raise IndexError(f"the job {self.name} has no task {index}.")

    def _stream(self, start: int, stop: int | None) -> Any:
        from fallow.sdk.mapjob import MapJob
        from fallow.sdk.results import ResultStream

        reader = MapJob(self._client.ready(), _reading_spec(self.id, self.name))
        return ResultStream(reader, consume=False, start=start, stop=-1 if stop is None else stop)

    def _reader(self, start: int, stop: int | None, return_exceptions: bool, timeout: float | None) -> Iterator[Any]:
        import itertools

        from fallow.sdk.results import Reading, iterate_parts

        if stop is not None and stop == start:
            return iter(())
        deadline = None if timeout is None else time.monotonic() + timeout

        def wait(future: Future[Any]) -> Any:
            try:
                return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except FutureTimeout:
                if future.done():
                    raise
                raise TimeoutError(f"{self.name} ({self.id}) has not ended within {timeout:g} s; it goes on.") from None

        parts = iterate_parts(self._stream(start, stop), Reading(self.name, return_exceptions), _nothing, wait)
        return itertools.chain.from_iterable(parts)

    def _finished(self) -> None:
        """Everything is with the caller."""
        after, self._after = self._after, None
        if after is not None:
            after()
        if self._job is not None:
            self._job.close(cancel=False)

    # ------------------------------------------------------------ what it is doing

    def status(self) -> JobInfo:
        """State, counts and nodes, as of now. Raises JobNotFound when the pool has forgotten the job."""
        from fallow.wire import subjects
        from fallow.wire.messages import GetJob

        reply = self._ask(subjects.job(self.id), GetJob(self.id))
        info: JobInfo = reply.info
        return info

    @property
    def done(self) -> bool:
        """Whether the job has ended, however."""
        return self.status().state in ("succeeded", "failed", "cancelled")

    def cancel(self, reason: str = "cancelled by its owner") -> None:
        """End the job. Results that are there can still be read."""
        from fallow.wire import subjects
        from fallow.wire.messages import CancelJob

        self._ask(subjects.job(self.id), CancelJob(self.id, reason))
        self._finished()

    def retry_failed(self, timeout: float | None = None) -> JobHandle:
        """Run again what failed, in the same job, keeping all other results. Waits for the job to end first: the
        failure that `get` raised may have been one of many, or an early one. Returns this handle.

        timeout: seconds to wait for the job's end, then TimeoutError. Raises PoolRefused where nothing failed, or
        where the job as a whole failed or was cancelled."""
        from fallow.wire import subjects
        from fallow.wire.messages import RetryFailed

        self._wait_ended(timeout)
        self._ask(subjects.job(self.id), RetryFailed(self.id))
        return self

    def _wait_ended(self, timeout_s: float | None) -> None:
        """Raises TimeoutError."""
        from fallow.sdk.mapjob import FETCH_WAIT_S
        from fallow.wire import subjects
        from fallow.wire.messages import FetchResults

        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        client = self._client.ready()
        while True:
            left_s = FETCH_WAIT_S if deadline is None else min(FETCH_WAIT_S, max(0.0, deadline - time.monotonic()))
            # There is no result so far out: the answer comes when the job ends, or when it has waited long enough.
            end = FetchResults(self.id, 1 << 62, wait_s=left_s)
            reply = client.submit_blocking(client.ask(subjects.job(self.id), end, timeout_s=left_s + END_LOST_S))
            if reply.exhausted:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.name} ({self.id}) has not ended within {timeout_s:g} s; it goes on.")

    def logs(self, after: int = 0, limit: int = 1000) -> tuple[LogLine, ...]:
        """Lines that its tasks printed, as far as the pool still has them; each with seq, node, index, stream, text."""
        from fallow.wire import subjects
        from fallow.wire.messages import GetLogs

        reply = self._ask(subjects.job(self.id), GetLogs(self.id, after, limit))
        lines: tuple[LogLine, ...] = reply.lines
        return lines

    def _ask(self, subject: str, message: Any) -> Any:
        client = self._client.ready()
        return client.submit_blocking(client.ask(subject, message))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if self._after is not None:
                self._after()


class InlineHandle:
    """What spawn returns inside a task that may not wait for the pool: the call has run here, by the time of get."""

    def __init__(self, name: str, call: Callable[[], Any]) -> None:
        self.id = JobId("")
        self.name = name
        self._value: Any = None
        self._error: Exception | None = None
        try:
            self._value = call()
        except Exception as error:
            self._error = error
        self.get = Twin(self._get, self._get_aio)

    def _get(self, timeout: float | None = None) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    async def _get_aio(self, timeout: float | None = None) -> Any:
        return self._get(timeout)

    @property
    def done(self) -> bool:
        return True

    def cancel(self, reason: str = "") -> None:
        """Too late: it has run."""


def job(text: str) -> JobHandle:
    """A job by its id, by the beginning of its id, or by its name (the newest of that name). Raises JobNotFound."""
    from fallow.wire import subjects
    from fallow.wire.messages import FindJob

    if not isinstance(text, str) or not text:
        raise SettingError(f"fallow.job({text!r}): give the id or the name of a job.")
    client = get_client().ready()
    info = client.submit_blocking(client.ask(subjects.POOL, FindJob(text))).info
    return JobHandle(client, info.job_id, info.name)


def jobs(limit: int = 100, *, active: bool = False) -> list[JobInfo]:
    """The pool's jobs, newest first; with `active` those that run."""
    from fallow.wire import subjects
    from fallow.wire.messages import ListJobs

    client = get_client().ready()
    return list(client.submit_blocking(client.ask(subjects.POOL, ListJobs(limit, active))).jobs)


def nodes() -> list[NodeInfo]:
    """The pool's nodes."""
    from fallow.wire import subjects
    from fallow.wire.messages import ListNodes

    client = get_client().ready()
    return list(client.submit_blocking(client.ask(subjects.POOL, ListNodes())).nodes)


def _reading_spec(job_id: JobId, name: str) -> JobSpec:
    """Enough of a spec to read results with; it is never submitted."""
    from fallow.model.ids import Digest

    return JobSpec(job_id, name, JobKind.MAP, ClientId(""), Blob(Digest(""), 0), detached=True)


def _nothing(_ended: bool) -> None:
    pass
