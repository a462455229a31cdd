"""Starting work in the pool: maps, single calls, spawned jobs; or right here, inside a task that may not wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fallow.model.errors import DetachedRefused, SettingError
from fallow.model.job import JobKind
from fallow.sdk.client import Client, current_bridge, get_client

if TYPE_CHECKING:
    from fallow.sdk.calls import Calls
    from fallow.sdk.function import Function
    from fallow.sdk.mapjob import MapJob
    from fallow.sdk.results import AsyncResults

_MAP_OPTIONS = {
    "kwargs", "order_outputs", "return_exceptions", "reduce", "initial", "detached",
}  # fmt: skip


@dataclass
class MapCall:
    """What a caller asked of a map."""

    function: Function[Any, Any]
    style: str
    inputs: Iterable[Any]
    kwargs: dict[str, Any] | None = None
    ordered: bool = True
    return_exceptions: bool = False
    reduce: Callable[[Any, Any], Any] | None = None
    initial: tuple[Any, ...] = ()
    detached: bool = False
    drop_results: bool = False
    page_items: int = 0
    """Tasks per page, where the caller sets it (Executor's chunksize)."""
    max_leases: int = 0
    hint: int = field(default=-1)

    @property
    def label(self) -> str:
        return self.function.name


def map_options(call: MapCall, options: dict[str, Any], method: str = "map") -> MapCall:
    """Set the options of `map` or `starmap` by their names. Raises TypeError for others."""
    for name in options:
        if name not in _MAP_OPTIONS:
            raise TypeError(f"{call.label}.{method} has no option {name!r}; it has {', '.join(sorted(_MAP_OPTIONS))}.")
    call.kwargs = options.get("kwargs")
    call.ordered = options.get("order_outputs", True)
    call.return_exceptions = options.get("return_exceptions", False)
    call.reduce = options.get("reduce")
    call.detached = options.get("detached", False)
    if "initial" in options:
        if call.reduce is None:
            raise SettingError("initial=... is the first value of a reduction: give reduce=... with it.")
        call.initial = (options["initial"],)
    return call


def zipped(name: str, *inputs: Iterable[Any]) -> Iterable[Any]:
    """Several iterables of `name`.map as one. Raises SettingError for what is none."""
    from fallow.sdk.submit import check_iterable

    return zip(*(check_iterable(each, f"{name}.map") for each in inputs), strict=False)


def _check(call: MapCall) -> None:
    from fallow.sdk.options import check_callable
    from fallow.sdk.submit import check_iterable, length_hint

    check_iterable(call.inputs, f"{call.label}.map")
    call.hint = length_hint(call.inputs)
    if call.kwargs is not None and not (
        isinstance(call.kwargs, dict) and all(isinstance(key, str) for key in call.kwargs)
    ):
        raise SettingError(f"kwargs={call.kwargs!r} must be a dictionary of keyword arguments.")
    if call.reduce is not None:
        check_callable(call.reduce, "reduce=")
        if call.return_exceptions or call.detached or not call.ordered:
            raise SettingError("reduce=... goes with neither return_exceptions, detached nor order_outputs=False.")


# ---------------------------------------------------------------- maps


def run_map(call: MapCall) -> Any:
    """Start the map; its results as an iterator, or one value (reduce), or a handle (detached)."""
    _check(call)
    if call.detached:
        return _run_detached(call)
    bridge = current_bridge()
    if bridge is not None:
        from fallow.sdk.nested import lending

        if not lending.begin(bridge):
            return _inline_map(call)
        try:
            results = _run_attached(call, after=lambda: lending.end(bridge))
        except BaseException:
            lending.end(bridge)
            raise
        return results
    return _run_attached(call)


def start_map(call: MapCall) -> MapJob:
    """Hand the job to the pool and feed it. The iterator over its results is the caller's."""
    client = get_client()
    # Imported and serialised while the pool starts.
    from fallow.sdk import progress
    from fallow.sdk.mapjob import MapJob
    from fallow.sdk.output import OutputPrinter
    from fallow.sdk.specs import make_spec
    from fallow.sdk.submit import Feeder, first_pages

    payload = call.function.payload(call.style, call.kwargs, call.reduce)
    pages, total = first_pages(client, call.inputs, call.page_items)
    spec = make_spec(
        client,
        name=call.label,
        kind=JobKind.MAP,
        payload=payload,
        options=call.function.options,
        reduce=call.reduce is not None,
        detached=call.detached,
        total_hint=call.hint,
        max_leases=call.max_leases,
        page_tasks=call.page_items > 1,
    )
    _refuse_detached(client, call.detached)
    job = MapJob(client, spec)
    if not client.nested and not call.detached:
        job.printer = OutputPrinter(spec.job_id, call.label)
    job.submit(pages, total)
    wanted = progress.wanted(client.nested or call.detached)
    if wanted is not None:
        job.progress = progress.Progress(job, style=wanted[0], after_s=wanted[1])
    if total < 0:
        Feeder(job, call.inputs, call.page_items).start()
    return job


def _run_attached(call: MapCall, after: Callable[[], None] | None = None) -> Any:
    from fallow.sdk.results import Reading, Results, ResultStream, fold, iterate_parts

    job = start_map(call)
    stream = ResultStream(job, ordered=call.ordered)
    stream.prefetch()
    reading = Reading(call.label, call.return_exceptions, job.spec.least_tier > 0)

    def done(ended: bool) -> None:
        job.close(cancel=not ended)
        if ended and job.progress is not None:
            job.progress.close()
            job.progress.join()
        if after is not None:
            after()

    if call.reduce is None:
        return Results(stream, reading, done)
    if call.hint == 0 and call.initial:
        done(True)
        return call.initial[0]
    return fold(iterate_parts(stream, reading, done), call.reduce, call.initial)


def _run_detached(call: MapCall) -> Any:
    from fallow.sdk.handle import JobHandle
    from fallow.sdk.mapjob import FeedStopped

    job = start_map(call)
    try:
        job.wait_fed()
    except FeedStopped:
        pass
    except BaseException:
        job.close(cancel=True, reason="its inputs could not all be stored")
        raise
    if job.input_error is not None:
        raise job.input_error
    return JobHandle(job.client, job.job_id, job.spec.name, least_tier=job.spec.least_tier)


def _refuse_detached(client: Client, detached: bool) -> None:
    if detached and client.ready().info.embedded:
        raise DetachedRefused(
            "a detached job outlives its script, and this script's own pool does not. Start `fallow up` in another "
            "terminal (or `fallow connect` to a pool), then run the script again (a notebook: restart its kernel)."
        )


def _inline_map(call: MapCall) -> Any:
    """Inside a task whose slot is not lent: run here, lazily, one after another."""
    import functools

    fn = functools.partial(call.function.fn, **call.kwargs) if call.kwargs else call.function.fn

    def one(item: Any) -> Any:
        try:
            return fn(*item) if call.style == "star" else fn(item)
        except Exception as error:
            if call.return_exceptions:
                return error
            raise

    results = map(one, call.inputs)
    if call.reduce is None:
        return results
    return functools.reduce(call.reduce, results, *call.initial)


def map_async(
    make: Callable[[Any, tuple[Any, ...], dict[str, Any]], MapCall],
    inputs: Any,
    more: tuple[Any, ...],
    options: dict[str, Any],
) -> AsyncResults:
    """Results of a map for `async for`. Inputs may be asynchronous as well."""
    from fallow.sdk.results import AsyncResults

    is_one = options.get("reduce") is not None or bool(options.get("detached"))
    return AsyncResults(_map_async(make, inputs, more, options), is_one)


async def _map_async(
    make: Callable[[Any, tuple[Any, ...], dict[str, Any]], MapCall],
    inputs: Any,
    more: tuple[Any, ...],
    options: dict[str, Any],
) -> AsyncGenerator[Any, None]:
    from fallow.sdk.results import Reading, ResultStream, iterate_async

    if hasattr(inputs, "__aiter__"):
        inputs = _from_async(inputs, asyncio.get_running_loop())
    call = make(inputs, more, options)
    if call.reduce is not None or call.detached:
        yield await asyncio.to_thread(run_map, call)
        return
    _check(call)
    bridge = current_bridge()
    if bridge is not None:
        # A task's own loop must go on while the nested job runs: each result is waited for in a thread.
        iterator = iter(await asyncio.to_thread(run_map, call))
        end = object()
        while (item := await asyncio.to_thread(next, iterator, end)) is not end:
            yield item
        return
    job = await asyncio.to_thread(start_map, call)
    stream = ResultStream(job, ordered=call.ordered)
    results = iterate_async(stream, Reading(call.label, call.return_exceptions, job.spec.least_tier > 0))
    try:
        async for item in results:
            yield item
    finally:
        await results.aclose()  # type: ignore[attr-defined]


def _from_async(inputs: Any, loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """Draw an asynchronous iterable on the caller's loop, from the feeder's thread."""
    iterator = inputs.__aiter__()

    async def draw() -> tuple[bool, Any]:
        try:
            return True, await iterator.__anext__()
        except StopAsyncIteration:
            return False, None

    while True:
        more, item = asyncio.run_coroutine_threadsafe(draw(), loop).result()
        if not more:
            return
        yield item


# ---------------------------------------------------------------- single calls


@contextlib.contextmanager
def lend() -> Iterator[bool]:
    """Around a blocking call: yields True where it must run right here, because this is a task that may not lend its
    slot."""
    bridge = current_bridge()
    if bridge is None:
        yield False
        return
    from fallow.sdk.nested import lending

    if not lending.begin(bridge):
        yield True
        return
    try:
        yield False
    finally:
        lending.end(bridge)


def open_calls(function: Function[Any, Any]) -> Calls:
    """The standing job of the function; opened in the pool with the first call."""
    client = get_client()
    from fallow.sdk.calls import Calls
    from fallow.sdk.output import OutputPrinter
    from fallow.sdk.specs import make_spec

    spec = make_spec(
        client,
        name=function.name,
        kind=JobKind.CALLS,
        payload=function.payload("call"),
        options=function.options,
    )
    printer = None if client.nested else OutputPrinter(spec.job_id, function.name, single=True)
    return Calls(client, spec, printer)


def spawn(function: Function[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One call as a job of its own. On a lasting pool it is detached: found by its id, from anywhere, later."""
    from fallow.sdk.handle import InlineHandle, JobHandle
    from fallow.sdk.mapjob import MapJob, page_blob
    from fallow.sdk.output import OutputPrinter
    from fallow.sdk.specs import make_spec

    bridge = current_bridge()
    after: Callable[[], None] | None = None
    if bridge is not None:
        from fallow.sdk.nested import lending

        if not lending.begin(bridge):
            return InlineHandle(function.name, lambda: function.fn(*args, **kwargs))

        def after() -> None:
            lending.end(bridge)

    client = get_client()
    from fallow.wire.messages import InputPage
    from fallow.wire.page import encode_inputs

    payload = function.payload("call")
    segments = encode_inputs([(args, kwargs)])
    client.ready()
    spec = make_spec(
        client,
        name=function.name,
        kind=JobKind.MAP,
        payload=payload,
        options=function.options,
        detached=not client.info.embedded and not client.nested,
        total_hint=1,
        single=True,
    )
    job = MapJob(client, spec)
    if not client.nested:
        job.printer = OutputPrinter(spec.job_id, function.name, single=True)
    job.submit([InputPage(0, 1, page_blob(client, segments, spec.detached))], 1)
    return JobHandle(client, spec.job_id, spec.name, single=True, job=job, after=after)
