"""Results of a map as they come out: ordered or not, one at a time to the caller, page by page inside."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn

from fallow.sdk.failures import fault_exception, item_exception
from fallow.sdk.mapjob import Batch, MapJob, Part
from fallow.wire.page import PageError, Partial, decode_items


class ResultStream:
    """Batches of results with one request of read-ahead, which the loop makes itself where the reader has kept up: so
    that its thread need not wake the loop once more. For one reader at a time."""

    def __init__(
        self, job: MapJob, *, ordered: bool = True, consume: bool = True, start: int = 0, stop: int = -1
    ) -> None:
        self.job = job
        self._ordered = ordered
        self._consume = consume
        self._cursor = start
        self._stop = stop
        self._ahead: Future[Batch] | None = None
        """What the reader takes next."""
        self._after: Future[Batch] | None = None
        """What comes after that. Set by the loop, before the reader sees the one before."""
        self._dropped = False
        self.finished = False

    def prefetch(self) -> None:
        """Ask for the next batch, unless that is under way."""
        if self._ahead is None and not self.finished:
            self._ahead = self.job.client.thread.submit(self._fetch())

    async def _fetch(self) -> Batch:
        # What is below the cursor has been received, and this client is the only reader of an attached job.
        consumed = self._cursor if self._consume else -1
        batch, self._cursor = await self.job.fetch(
            self._cursor, ordered=self._ordered, consumed=consumed, stop=self._stop
        )
        if self._after is None and not batch.last and not self._dropped:
            self._after = self.job.client.thread.submit(self._fetch())
        return batch

    def pending(self) -> Future[Batch]:
        """The batch under way."""
        self.prefetch()
        assert self._ahead is not None
        return self._ahead

    def arrived(self, batch: Batch) -> list[Part]:
        """Take over the batch that `pending` came to: asks for the next, makes room for inputs."""
        self._ahead, self._after = self._after, None
        self.finished = batch.last
        if not batch.last:
            self.prefetch()
        elif self._consume:
            self.job.client.later(self.job.acknowledge, self._cursor, self._ordered)
        parts = batch.parts
        if self._ordered:
            parts.sort(key=lambda part: part.start)
        if self._consume:
            self.job.received(sum(part.stop - part.start for part in parts))
        return parts

    def drop(self) -> None:
        self._dropped = True
        for future in (self._ahead, self._after):
            if future is not None:
                future.cancel()


class Reading:
    """How a caller wants to see failures."""

    def __init__(self, name: str, return_exceptions: bool, plain: bool, let_go: bool = False) -> None:
        self.name = name
        self._let_go = let_go
        """No result is kept after it has been yielded, as the standard executors have it."""
        self.plain = plain
        """The job may run on strangers' machines: what they say is data, and is checked."""
        self.return_exceptions = return_exceptions

    def items(self, part: Part) -> Iterator[Any]:
        """An iterator over the results of the part. Items that failed raise from it, and it can go on after that."""
        if part.fault is not None:
            return _Failing(iter((None,)), part.start, self, fault_exception(part.fault, self.name))
        items = decode_items(part.buffer, self.plain)
        doubtful = bool(part.failed_count) or self.plain or type(items) is Partial
        low, high = part.start - part.page_start, part.stop - part.page_start
        if self.plain and not 0 <= low <= high <= len(items):
            raise PageError(f"a page of {len(items)} results came for the tasks {part.start} to {part.stop - 1}")
        if low or high != len(items):
            items = items[low:high]
        each = _emptying(items) if self._let_go and isinstance(items, list) else iter(items)
        return _Failing(each, part.start, self) if doubtful else each


def _emptying(items: list[Any]) -> Iterator[Any]:
    """Over a list that nobody else wants: an iterator over it would hold all of it until its end."""
    items.reverse()
    return map(items.pop, itertools.repeat(-1, len(items)))


class _Failing:
    """Iterates over results among which there are failures."""

    __slots__ = ("_fault", "_index", "_items", "_reading")

    def __init__(self, items: Iterator[Any], index: int, reading: Reading, fault: BaseException | None = None) -> None:
        self._items = items
        self._index = index - 1
        self._reading = reading
        self._fault = fault

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        self._index += 1
        error = self._fault
        if error is None:
            error = item_exception(item, self._index, self._reading.name, self._reading.plain)
        if error is None:
            return item
        if self._reading.return_exceptions:
            return error
        raise_in_iterator(error, f"task {self._index} of {self._reading.name}")


def raise_in_iterator(error: BaseException, what: str) -> NoReturn:
    """Raise out of __next__: a StopIteration would end the loop there, as if there were no more results."""
    if isinstance(error, StopIteration):
        raise RuntimeError(f"{what} raised StopIteration") from error
    raise error


def _waited(future: Future[Batch]) -> Batch:
    return future.result()


def iterate_parts(
    stream: ResultStream,
    reading: Reading,
    done: Callable[[bool], None],
    wait: Callable[[Future[Batch]], Batch] = _waited,
) -> Generator[Iterator[Any], None, None]:
    """Iterators over the items of one part after another. `done(ended)` is called once, whatever happens: also when
    the generator is dropped. Yields an empty part first, so that a primed generator is sure to get there."""
    ended = False
    try:
        yield iter(())
        while not stream.finished:
            batch = wait(stream.pending())
            parts = stream.arrived(batch)
            parts.reverse()
            while parts:  # (what was read is let go of: it may be a file that takes room)
                yield reading.items(parts.pop())
            if batch.error is not None:
                ended = True
                raise batch.error
        ended = True
    finally:
        stream.drop()
        done(ended)


class Results:
    """What `.map` returns: an iterator over results. Dropping or closing it before the end cancels the job.

    After a task's exception it can be asked on for the results that follow."""

    def __init__(
        self,
        stream: ResultStream,
        reading: Reading,
        done: Callable[[bool], None],
        wait: Callable[[Future[Batch]], Batch] = _waited,
    ) -> None:
        self.job_id = stream.job.job_id
        self._name = reading.name
        self._parts = iterate_parts(stream, reading, done, wait)
        next(self._parts)
        self._items = itertools.chain.from_iterable(self._parts)

    def __iter__(self) -> Iterator[Any]:
        # The bare chain: nothing of ours runs per item. It keeps the generator alive, and with it the job.
        return self._items

    def __next__(self) -> Any:
        return next(self._items)

    def __repr__(self) -> str:
        return f"<results of {self._name}, job {self.job_id}: iterate over them, once>"

    def close(self) -> None:
        """Want no more results: the job is cancelled."""
        self._parts.close()
        self._items = itertools.chain(())


class AsyncResults:
    """What `.map.aio` returns, for `async for`; where there is one value (reduce=, detached=True), for `await`."""

    def __init__(self, items: AsyncGenerator[Any, None], is_one: bool) -> None:
        self._items = items
        self._is_one = is_one

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._items

    def __anext__(self) -> Awaitable[Any]:
        return self._items.__anext__()

    def aclose(self) -> Awaitable[None]:
        """Want no more results: the job is cancelled."""
        return self._items.aclose()

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._is_one:
            raise TypeError(
                "a map has many results: `async for y in f.map.aio(...)`. There is one to await with reduce=... or "
                "detached=True."
            )
        return self._one().__await__()

    async def _one(self) -> Any:
        try:
            return await anext(self._items)
        finally:
            await self._items.aclose()


async def iterate_async(stream: ResultStream, reading: Reading) -> AsyncIterator[Any]:
    """The same for `async for`."""
    ended = False
    try:
        while not stream.finished:
            batch = await asyncio.wrap_future(stream.pending())
            parts = stream.arrived(batch)
            parts.reverse()
            while parts:
                for item in reading.items(parts.pop()):
                    yield item
            if batch.error is not None:
                ended = True
                raise batch.error
        ended = True
    finally:
        stream.drop()
        stream.job.close(cancel=not ended)


def fold(parts: Iterator[Iterator[Any]], reduce: Callable[[Any, Any], Any], initial: Sequence[Any]) -> Any:
    """Fold partial values in index order. `initial`: empty, or the one value to begin with. Raises TypeError for
    nothing at all, as functools.reduce does."""
    import functools

    values = itertools.chain(initial, itertools.chain.from_iterable(parts))
    try:
        first = next(values)
    except StopIteration:
        raise TypeError("reduce of no inputs without an initial value: give initial=...") from None
    return functools.reduce(reduce, values, first)
