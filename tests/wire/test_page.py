from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fallow.model.errors import UnserialisableInput, UnserialisableResult
from fallow.wire.page import (
    Failure,
    NotPlainPage,
    PageError,
    decode_page,
    encode_inputs,
    encode_results,
    page_size,
    split_unserialisable,
)

PLAIN = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans(), st.none(), st.binary())


def inputs(items: Any) -> bytes:
    return b"".join(encode_inputs(items))


def results(values: list[Any], failures: dict[int, Failure] | None = None) -> bytes:
    return b"".join(encode_results(values, failures))


@given(st.lists(PLAIN | st.tuples(PLAIN, PLAIN) | st.lists(PLAIN)))
def test_items_come_back_as_they_were(items: list[Any]) -> None:
    back = list(decode_page(inputs(items)))
    assert back == items
    assert [type(item) for item in back] == [type(item) for item in items]


@given(st.lists(PLAIN, min_size=1), st.data())
def test_failures_stand_where_their_results_would(values: list[Any], data: st.DataObject) -> None:
    offsets = data.draw(st.sets(st.integers(0, len(values) - 1)))
    failures = {offset: Failure("raised", "ValueError", str(offset), "text", b"x") for offset in offsets}
    back = decode_page(results(values, failures))
    assert [failures.get(offset, value) for offset, value in enumerate(values)] == list(back)


def test_a_range_takes_no_room() -> None:
    page = inputs(range(5, 10**12, 3))
    assert len(page) == 48
    assert decode_page(page) == range(5, 10**12, 3)


def test_a_range_over_64_bits_travels_as_a_list() -> None:
    assert list(decode_page(inputs(range(2**70, 2**70 + 3)))) == [2**70, 2**70 + 1, 2**70 + 2]


@pytest.mark.parametrize(
    ("items", "plain"),
    [([1, "a", None, 2.5, True, b"x"], True), ([2**70], False), (["\ud800"], False), ([(1,)], False), ([], True)],
)
def test_plain_pages_hold_exact_simple_types(items: list[Any], plain: bool) -> None:
    page = inputs(items)
    if plain:
        assert decode_page(page, plain=True) == items
        return
    with pytest.raises(NotPlainPage):
        decode_page(page, plain=True)


def test_subclasses_keep_their_type() -> None:
    class Text(str):
        __slots__ = ()

    (back,) = decode_page(inputs([Text("a")]))
    assert type(back) is Text


def test_large_arrays_are_neither_copied_to_encode_nor_to_decode() -> None:
    array = np.arange(100_000)
    segments = encode_inputs([array, "x"])
    assert any(np.shares_memory(np.frombuffer(segment, np.uint8), array) for segment in segments)
    page = np.frombuffer(b"".join(segments), np.uint8)
    back = decode_page(page)[0]
    assert isinstance(back, np.ndarray)
    assert np.shares_memory(page, back)
    assert (back == array).all()
    assert page_size(segments) == len(page)


def test_buffers_begin_at_multiples_of_64() -> None:
    page = bytearray(inputs([np.ones(1001, np.uint8).repeat(5), np.zeros(9000)]))
    base = np.frombuffer(page, np.uint8).ctypes.data
    for array in decode_page(page):
        assert isinstance(array, np.ndarray)
        assert (array.ctypes.data - base) % 64 == 0


def test_arrays_of_small_pages_may_be_written_to() -> None:
    (array,) = decode_page(inputs([np.zeros(2000)]))
    assert isinstance(array, np.ndarray)
    array += 1
    assert array.sum() == 2000


def test_arrays_in_mapped_memory_are_read_only() -> None:
    page = memoryview(inputs([np.zeros(200_000)])).toreadonly()
    (array,) = decode_page(page)
    assert isinstance(array, np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        array += 1


def test_functions_and_local_classes_travel() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    double, point = decode_page(inputs([lambda x: 2 * x, Point(3)]))
    assert callable(double)
    assert double(4) == 8
    assert isinstance(point, Point)
    assert point.x == 3


def test_the_input_that_cannot_be_serialised_is_named() -> None:
    with pytest.raises(UnserialisableInput, match=r"input 2 -> \['lock'\] is a lock") as caught:
        inputs([1, 2, {"lock": threading.Lock()}])
    assert caught.value.index == 2
    assert caught.value.where == "input 2 -> ['lock']"


def test_the_result_that_cannot_be_serialised_is_named() -> None:
    with pytest.raises(UnserialisableResult, match=r"result 1 is a generator"):
        results([1, (x for x in ())])


def test_every_bad_result_is_found_in_one_pass() -> None:
    bad = split_unserialisable([threading.Lock() if n % 2 else n for n in range(100)])
    assert sorted(bad) == list(range(1, 100, 2))


@pytest.mark.parametrize("data", [b"", b"FP", b"x" * 100, inputs([1, 2, 3])[:-1], inputs([{}])[:30]])
def test_what_is_no_page_is_refused(data: bytes) -> None:
    with pytest.raises(PageError):
        decode_page(data)
