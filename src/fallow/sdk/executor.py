"""fallow.Executor: a concurrent.futures.Executor whose workers are the pool.

Semantics are those of the newest CPython: `fn` is positional-only, `map` takes `buffersize`, iteration over a map goes
on after an exception. In place of a fixed number of processes there are the pool's slots; max_workers caps how many
work for this executor at once.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import Executor as StandardExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fallow.model.errors import SettingError
from fallow.sdk.call_future import CallFuture, wait_called
from fallow.sdk.client import Client, current_bridge, get_client
from fallow.sdk.objects import File
from fallow.sdk.options import Options, check_callable, read_options
from fallow.sdk.shipped import Shipper, run_shipped

if TYPE_CHECKING:
    from fallow.sdk.calls import Calls
    from fallow.sdk.mapjob import Batch
    from fallow.sdk.results import Reading, ResultStream

T = TypeVar("T")


class Executor(StandardExecutor):
    """max_workers: most slots that work for it at once (default: all of the pool). Options as for App.function."""

    def __init__(self, max_workers: int | None = None, *, name: str = "executor", **options: Any) -> None:
        if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
            raise TypeError(f"max_workers={max_workers!r} must be a whole number.")
        if max_workers is not None and max_workers < 1:
            raise ValueError("max_workers must be greater than 0")
        try:
            self._options: Options = read_options(**options)
        except TypeError as error:
            words = str(error).replace("read_options()", "Executor")
            raise SettingError(
                f"{words}. The options are max_workers, name, timeout, retries, cpu, memory, gpu, env, max_nodes, "
                "speculate, sandbox and network; what an initializer does belongs into a class: @app.cls with "
                "@fallow.enter."
            ) from None
        self._name = name
        self._max_leases = max_workers or 0
        self._lock = threading.Lock()
        self._shut = False
        self._calls: Calls | None = None
        self._maps: set[_Map] = set()
        self._shipper = Shipper(self._dump)
        get_client().executors.add(self)

    @property
    def _max_workers(self) -> int:
        """How many calls run at once; Dask asks executors for it by this name."""
        return self._max_leases or get_client().slots()

    # ------------------------------------------------------------ one call

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a call. The future is running once the call has been sent, and can be cancelled before."""
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        check_callable(fn, "submit") if not isinstance(fn, type) else None
        bridge = current_bridge()
        future: Future[T] = CallFuture()
        if bridge is not None:
            from fallow.sdk.nested import lending

            if not lending.begin(bridge):
                _run_here(future, fn, args, kwargs)
                return future
            future.add_done_callback(lambda _: lending.end(bridge))
        try:
            calls = self._open_calls()
            for value in args:
                if type(value) is File:
                    value.upload()  # pages are encoded on the client's loop, which must not wait for it
            calls.submit(future, (self._shipper.ship(fn), args, kwargs))
        except BaseException:
            future.cancel()
            raise
        return future

    def _open_calls(self) -> Calls:
        calls = self._calls
        if calls is not None and calls.ended is None and not calls.client.closed:
            return calls
        with self._lock:
            calls = self._calls
            if calls is None or calls.ended is not None or calls.client.closed:
                calls = self._calls = self._make_calls(get_client())
            return calls

    def _make_calls(self, client: Client) -> Calls:
        from fallow.model.job import JobKind
        from fallow.sdk.calls import Calls
        from fallow.sdk.output import OutputPrinter
        from fallow.sdk.specs import dump_payload, make_spec

        client.executors.add(self)
        spec = make_spec(
            client,
            name=self._name,
            kind=JobKind.CALLS,
            payload=dump_payload(run_shipped, style="star", name=self._name, options=self._options),
            options=self._options,
            max_leases=self._max_leases,
        )
        printer = None if client.nested else OutputPrinter(spec.job_id, self._name, single=True)
        return Calls(client, spec, printer)

    def _dump(self, fn: Callable[..., Any]) -> bytes:
        from fallow.sdk.specs import dump_payload

        return dump_payload(fn, style="call", name=getattr(fn, "__name__", self._name), options=self._options)

    # ------------------------------------------------------------ many

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Results of fn over the zipped iterables, in order. timeout: seconds from this call on, after which waiting
        raises TimeoutError. chunksize: tasks that travel together (the pool groups them by itself anyway).
        buffersize: calls submitted ahead of what has been yielded; without it inputs are drawn as fast as they go."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and (isinstance(buffersize, bool) or not isinstance(buffersize, int)):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        deadline = None if timeout is None else time.monotonic() + timeout
        if not iterables:
            return iter(())
        for inputs in iterables:
            if not isinstance(inputs, Iterable):
                iter(inputs)  # raises as the standard executors do, unless it can be indexed
        if buffersize is not None:
            return _BufferedMap(self, fn, zip(*iterables, strict=False), deadline, chunksize, buffersize)
        bridge = current_bridge()
        if bridge is not None:
            from fallow.sdk.nested import lending

            if not lending.begin(bridge):
                return iter([fn(*args) for args in zip(*iterables, strict=False)])
            return _MapResults(self._start_map(fn, iterables, chunksize, lambda: lending.end(bridge)), deadline)
        return _MapResults(self._start_map(fn, iterables, chunksize, _nothing), deadline)

    def _start_map(
        self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], chunksize: int, after: Callable[[], None]
    ) -> _Map:
        from fallow.sdk.function import Function
        from fallow.sdk.results import Reading, ResultStream
        from fallow.sdk.start import MapCall, start_map
        from fallow.sdk.submit import length_hint

        function: Function[..., Any] = Function(fn, self._options, name=getattr(fn, "__name__", self._name))
        # Lists are copied: the standard executors draw all inputs at once, so that later changes are not seen.
        drawn = [list(inputs) if isinstance(inputs, list) else inputs for inputs in iterables]
        if len(drawn) == 1:
            call = MapCall(function, "map", drawn[0])
        else:
            call = MapCall(function, "star", zip(*drawn, strict=False))
        call.hint = min((length_hint(inputs) for inputs in drawn), default=-1)
        call.page_items = chunksize if chunksize > 1 else 0
        call.max_leases = self._max_leases
        job = start_map(call)
        stream = ResultStream(job)
        stream.prefetch()
        reading = Reading(function.name, False, job.spec.least_tier > 0, let_go=True)
        live = _Map(stream, reading, self, after)
        with self._lock:
            self._maps.add(live)
        return live

    # ------------------------------------------------------------ the end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait until those submitted are done, unless wait is False. cancel_futures: those not
        sent yet are cancelled. Results of maps can still be read afterwards."""
        with self._lock:
            self._shut = True
            maps = list(self._maps)
            calls = self._calls
        if calls is not None:
            if cancel_futures:
                calls.cancel_queued()
            calls.close()
        for live in maps:
            if cancel_futures:
                live.cancel()
            elif wait:
                live.buffer_all()
        if wait and calls is not None:
            calls.wait_idle()
            wait_called()
        with contextlib.suppress(Exception):
            get_client().executors.discard(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.abort()  # whoever presses Ctrl-C does not want to wait for hours of work
        return super().__exit__(kind, error, trace)

    def abort(self) -> None:
        """End everything now, what runs included: its futures fail with JobCancelled."""
        with self._lock:
            self._shut = True
            maps, calls = list(self._maps), self._calls
        if calls is not None:
            calls.abort()
        for live in maps:
            live.cancel()

    def _map_ended(self, live: _Map) -> None:
        with self._lock:
            self._maps.discard(live)


MAP_TIMED_OUT = (
    "the results of this map were not all there within the timeout given to Executor.map; "
    "what of it had not ended is cancelled"
)


class _OutOfTime(TimeoutError):
    """The wait for a map has timed out (and not one of its tasks)."""


class _Map:
    """One map under way. Batches are taken by the iterator, or kept here when the executor is shut down before."""

    def __init__(self, stream: ResultStream, reading: Reading, executor: Executor, after: Callable[[], None]) -> None:
        self.stream = stream
        self.reading = reading
        self._executor = weakref.ref(executor)
        # Keeps the executor while the map runs, so that dropping both does not end work that was asked for.
        self._owner: Executor | None = executor
        self._after: Callable[[], None] | None = after
        self._kept: deque[Batch] = deque()
        self._lock = threading.Lock()
        self._cancelled = False

    def next(self, deadline: float | None) -> Batch | None:
        """The next batch; None after the last. Raises TimeoutError."""
        with self._lock:
            if self._kept:
                return self._kept.popleft()
            return self._take(deadline)

    def _take(self, deadline: float | None) -> Batch | None:
        if self.stream.finished:
            return None
        if self._cancelled:
            raise CancelledError
        future = self.stream.pending()
        try:
            batch = future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            if future.done():
                raise
            raise _OutOfTime("the results were not there in time") from None
        if self._cancelled:
            raise CancelledError  # in another thread, while this one waited
        self.stream.arrived(batch)
        if batch.last:
            self.end(cancel=False)
        return batch

    def buffer_all(self) -> None:
        """Wait for all results and keep them (as encoded pages). Raises nothing: errors come out of the iterator."""
        with self._lock:
            try:
                while (batch := self._take(None)) is not None:
                    self._kept.append(batch)
            except Exception as error:
                from fallow.sdk.mapjob import Batch

                self._kept.append(Batch([], True, error))

    def cancel(self) -> None:
        self._cancelled = True
        self.end(cancel=True)

    def end(self, *, cancel: bool) -> None:
        """The job is over, or nobody wants it."""
        after, self._after = self._after, None
        if after is None:
            return
        self._owner = None
        self.stream.job.close(cancel=cancel)
        executor = self._executor()
        if executor is not None:
            executor._map_ended(self)
        after()

    def discard_rest(self) -> None:
        """The iterator was dropped before it was used: the work is done for its own sake, as standard executors do."""
        self.stream.job.client.later(self._start_discarding)

    def _start_discarding(self) -> None:
        self.stream.job.client.spawn(self._discard())

    async def _discard(self) -> None:
        import asyncio

        with contextlib.suppress(Exception):
            while not self.stream.finished and not self._cancelled:
                self.stream.arrived(await asyncio.wrap_future(self.stream.pending()))
        self.end(cancel=False)


def _map_parts(live: _Map, deadline: float | None) -> Generator[Iterator[Any], None, None]:
    while (batch := live.next(deadline)) is not None:
        for part in batch.parts:
            yield live.reading.items(part)
        if batch.error is not None:
            raise batch.error


class _MapResults:
    """Iterator over a map's results that can be asked on after an exception."""

    def __init__(self, live: _Map, deadline: float | None) -> None:
        self._live: _Map | None = live
        self._started = False
        self._items = itertools.chain.from_iterable(_map_parts(live, deadline))

    def __iter__(self) -> _MapResults:
        return self

    def __next__(self) -> Any:
        self._started = True
        try:
            return next(self._items)
        except _OutOfTime:
            self.close()
            raise TimeoutError(MAP_TIMED_OUT) from None

    def close(self) -> None:
        """Want no more: what has not begun is cancelled."""
        live, self._live = self._live, None
        if live is not None:
            live.end(cancel=not live.stream.finished)
        self._items = itertools.chain(())

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if self._live is not None and not self._started and not self._live.stream.finished:
                self._live.discard_rest()
                return
            self.close()


class _BufferedMap:
    """Map with a bound on the calls submitted ahead: futures, one after another; `chunksize` inputs are drawn, and so
    many calls submitted, at a time."""

    def __init__(
        self,
        executor: Executor,
        fn: Callable[..., Any],
        inputs: Iterator[tuple[Any, ...]],
        deadline: float | None,
        chunksize: int,
        buffersize: int,
    ) -> None:
        self._executor = weakref.ref(executor)
        self._fn = fn
        self._inputs = inputs
        self._deadline = deadline
        self._chunksize = chunksize
        self._futures: deque[Future[Any]] = deque()
        self._chunks: deque[int] = deque()
        """How many calls of each chunk are among the futures."""
        self._input_error: Exception | None = None
        """What drawing the inputs raised: it comes out after the results of those before it."""
        for _ in range(buffersize):
            if not self._submit_next():
                break

    def __iter__(self) -> _BufferedMap:
        return self

    def __next__(self) -> Any:
        if not self._futures:
            wrong, self._input_error = self._input_error, None
            if wrong is not None:
                raise wrong
            raise StopIteration
        future = self._futures[0]
        left_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not wait([future], left_s).done:
            self.close()
            raise TimeoutError(MAP_TIMED_OUT)
        self._next_ahead()
        error = future.exception()
        if error is not None:  # asked for by its value: exceptions may count as false
            from fallow.sdk.results import raise_in_iterator

            raise_in_iterator(error, f"a task of {getattr(self._fn, '__name__', 'the map')}")
        return future.result()

    def _next_ahead(self) -> None:
        self._futures.popleft()
        self._chunks[0] -= 1
        if not self._chunks[0]:
            self._chunks.popleft()
            executor = self._executor()
            if executor is not None and not executor._shut:
                self._submit_next()

    def _submit_next(self) -> bool:
        executor = self._executor()
        if executor is None or self._input_error is not None:
            return False
        chunk: list[tuple[Any, ...]] = []
        try:
            chunk.extend(itertools.islice(self._inputs, self._chunksize))
        except Exception as error:
            self._input_error = error
        if not chunk:
            return False
        self._futures.extend(executor.submit(self._fn, *args) for args in chunk)
        self._chunks.append(len(chunk))
        return True

    def close(self) -> None:
        """Want no more: what is not sent is cancelled."""
        self._inputs = iter(())
        self._input_error = None
        while self._futures:
            self._futures.popleft().cancel()

    def __del__(self) -> None:
        # Dropped in the middle: what is not sent is not wanted.
        with contextlib.suppress(Exception):
            self.close()


def _run_here(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    future.set_running_or_notify_cancel()
    try:
        future.set_result(fn(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)


def _nothing() -> None:
    pass
