"""What pickles and does not unpickle costs the task that it belongs to, and no other."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import pytest

import fallow
from fallow.model import errors
from fallow.wire.page import Partial, Unreadable, decode_items, encode_inputs

app = fallow.App("unreadable")


class Broken(Exception):
    """Its pickle calls __init__ with the message alone."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


class Ends:
    """Ends whoever unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class Kills:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)


class Hangs:
    """Whoever unpickles it waits for long."""

    def __reduce__(self) -> Any:
        return time.sleep, (600,)


class EndsHere:
    """Ends whoever pickles it."""

    def __reduce__(self) -> Any:
        sys.exit(3)


@app.function()
def broken_at_5(x: int) -> Any:
    return {"why": [Broken("number", x)]} if x == 5 else x


@app.function()
def same(x: Any) -> Any:
    return x


@app.function()
def ends(x: int) -> Any:
    return Ends() if x else x


@app.function(timeout=2.0)
def same_soon(x: Any) -> Any:
    return x


def test_items_beside_one_that_cannot_be_read() -> None:
    array = bytearray(5000)
    page = b"".join(encode_inputs([1, Broken("a", 1), {"deep": [Broken("b", 2)]}, array, Broken, "end"]))
    items = decode_items(page)
    assert type(items) is Partial
    assert [type(item) is Unreadable for item in items] == [False, True, True, False, False, False]
    assert items[0] == 1
    assert items[3:] == [array, Broken, "end"]
    error = items[2]
    assert isinstance(error, Unreadable)
    assert "missing 1 required positional argument: 'number'" in str(error.error)
    assert type(decode_items(b"".join(encode_inputs([{1}, 2])))) is list


@pytest.mark.usefixtures("connected")
def test_results() -> None:
    results = list(broken_at_5.map(range(100), return_exceptions=True))
    error = results.pop(5)
    assert results == [*range(5), *range(6, 100)]
    assert isinstance(error, errors.UnserialisableResult)
    assert error.index == 5
    assert "the result of task 5 of broken_at_5 has come, but cannot be unpickled here" in str(error)
    assert isinstance(error.__cause__, TypeError)
    with pytest.raises(errors.UnserialisableResult, match=r"missing 1 required .* 'number'"):
        broken_at_5.remote(5)
    with fallow.Executor() as executor:
        futures = [executor.submit(broken_at_5, x) for x in range(20)]
        assert [future.exception(60) is None for future in futures] == [x != 5 for x in range(20)]


@app.function()
def first_of(xs: list[int]) -> int:
    return next(iter(xs))


@pytest.mark.usefixtures("connected")
def test_a_task_that_raises_stopiteration_does_not_end_the_loop() -> None:
    inputs: list[list[int]] = [[0], [1], [], [3]]
    results = first_of.map(inputs)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RuntimeError, match="task 2 of first_of raised StopIteration"):
        next(results)
    assert list(results) == [3]
    with fallow.Executor() as executor:
        buffered = executor.map(first_of.fn, inputs, buffersize=4)
        assert [next(buffered), next(buffered)] == [0, 1]
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            next(buffered)
        assert list(buffered) == [3]


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_an_input_that_ends_its_worker_or_hangs_while_it_is_unpickled() -> None:
    inputs: list[Any] = [*range(1000)]
    inputs[700] = {"deep": [Kills()]}
    inputs[400] = Hangs()
    results = list(same_soon.map(inputs, return_exceptions=True))
    assert isinstance(results[700], errors.WorkerLost)
    assert isinstance(results[400], errors.TaskTimeout)
    assert (results[700].index, results[400].index) == (700, 400)
    results[700] = results[400] = None
    inputs[700] = inputs[400] = None
    assert results == inputs


@pytest.mark.usefixtures("connected")
async def test_a_stopiteration_that_is_awaited() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(first_of.remote.aio([]), 60)


@pytest.mark.usefixtures("connected")
def test_inputs() -> None:
    results = list(same.map([*range(50), Broken("x", 1), *range(51, 100)], return_exceptions=True))
    error = results.pop(50)
    assert results == [*range(50), *range(51, 100)]
    assert isinstance(error, TypeError)
    assert "missing 1 required" in str(error)
    assert "unpickled" in error.__notes__[0]


@pytest.mark.usefixtures("connected")
def test_objects_that_end_the_process_which_handles_them() -> None:
    with fallow.Executor() as executor:
        assert isinstance(executor.submit(same, EndsHere()).exception(60), errors.UnserialisableInput)
        assert isinstance(executor.submit(same, Ends()).exception(60), errors.RemoteError)
        assert isinstance(executor.submit(ends, 1).exception(60), errors.UnserialisableResult)
        assert executor.submit(same, 7).result(60) == 7
    with pytest.raises(errors.UnserialisableInput, match=r"^argument 1 -> \[0\] is an .* SystemExit"):
        same.remote([EndsHere()])
    with pytest.raises(errors.UnserialisableInput, match=r"^argument 'x' -> \[0\] is an "):
        same.remote(x=[EndsHere()])
