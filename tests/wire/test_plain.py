"""Plain data: it comes back as it went, and nothing that would run code is ever opened."""

from __future__ import annotations

import datetime
import decimal
import math
import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from fallow.wire.page import NotPlainPage, decode_page, encode_results
from fallow.wire.plain import MOST_DEPTH, NotPlain, PlainError, decode_plain, encode_plain, find_not_plain

offsets = st.integers(-1439, 1439).map(lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes)))
hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.datetimes(timezones=st.none() | offsets)
    | st.dates()
    | st.times(timezones=st.none() | offsets)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
values = st.recursive(
    hashable | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: True is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(key, other_key) and same(one[key], other[other_key]) for key, other_key in zip(one, other, strict=True)
        )
    return bool(one == other)


@settings(deadline=None)
@given(st.lists(values, max_size=6))
def test_plain_data_comes_back_as_it_went(items: list[Any]) -> None:
    assert find_not_plain(items) is None
    assert same(decode_plain(encode_plain(items)), items)
    page = b"".join(bytes(segment) for segment in encode_results(items, plain=True))
    assert same(list(decode_page(page, plain=True)), items)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_plain_data_or_refused(data: bytes) -> None:
    try:
        decode_plain(data)
    except PlainError:
        pass


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(12, dtype=">i2").reshape(3, 4).T,
        numpy.array(3.5),
        numpy.zeros((0, 3), numpy.float32),
        numpy.array(["ä", "bc"]),
        numpy.array(["2024-02-29"], "M8[D]"),
        numpy.array([True, False])[::-1],
    ],
)
def test_arrays_come_back_as_copies_of_their_own(array: Any) -> None:
    (back,) = decode_plain(encode_plain([array]))
    assert isinstance(back, numpy.ndarray)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert (back == array).all()
    assert back.flags.writeable
    assert decode_plain(encode_plain([numpy.float32(1.5)])) == [numpy.float32(1.5)]


def test_not_a_number_stays_none() -> None:
    (back,) = decode_plain(encode_plain([float("nan")]))
    assert isinstance(back, float)
    assert math.isnan(back)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickled_page_is_refused_and_not_opened(tmp_path: Path) -> None:
    fuse = tmp_path / "went-off"
    page = b"".join(bytes(segment) for segment in encode_results([Bomb(fuse)]))
    with pytest.raises(NotPlainPage, match="not opened"):
        decode_page(page, plain=True)
    assert not fuse.exists()
    decode_page(page)
    assert fuse.exists(), "the bomb is none: this test would prove nothing"


def test_a_pickle_within_an_extension_is_not_opened(tmp_path: Path) -> None:
    fuse = tmp_path / "went-off"
    bomb = pickle.dumps(Bomb(fuse))
    pack = msgspec.msgpack.encode
    objects = pack(["|O", [1], bomb])
    for code in range(-128, 128):
        for content in (bomb, pack(bomb), objects):
            try:
                decode_plain(pack([Ext(code, content)]))
            except PlainError:
                continue
    assert not fuse.exists()


@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        ([object()], "[0]", "a object"),
        ({"model": [1, object()]}, "['model'][1]", "a object"),
        ((1, {2: Path("x")}), "[1][2]", "pathlib"),
        (numpy.array([object()]), "", "NumPy ndarray of object"),
        (numpy.zeros(2, [("a", "i4")]), "", "NumPy ndarray"),
        (numpy.ma.masked_array([1]), "", "NumPy"),
        (type("Text", (str,), {})("x"), "", "Text"),
    ],
)
def test_what_is_not_plain_is_named_with_its_place(value: Any, where: str, what: str) -> None:
    error = find_not_plain(value)
    assert isinstance(error, NotPlain)
    assert (error.where, what in error.what) == (where, True), error.what
    with pytest.raises(NotPlain):
        encode_plain([value])


def test_depth_is_bounded_on_both_sides() -> None:
    deep: list[Any] = []
    for _ in range(MOST_DEPTH + 2):
        deep = [deep]
    assert "nested" in getattr(find_not_plain(deep), "what", "")
    with pytest.raises(PlainError):
        decode_plain(b"\x91" * 100_000 + b"\x90")


@pytest.mark.parametrize(
    "content",
    [
        ["<f8", [1 << 40], b""],
        ["<f8", [-1, -1], b"12345678"],
        ["<f8", [2], b"12345678"],
        ["|V8", [1], b"12345678"],
        ["f8,f8", [1], b"1234567812345678"],
        ["x" * 50, [1], b""],
        ["<f8", [1] * 40, b"12345678"],
        [3, 4, 5],
        [],
    ],
)
def test_arrays_that_are_none_are_refused(content: list[Any]) -> None:
    with pytest.raises(PlainError):
        decode_plain(msgspec.msgpack.encode([Ext(14, msgspec.msgpack.encode(content))]))


def test_types_of_the_standard_library_keep_theirs() -> None:
    items = [
        decimal.Decimal("1.10"),
        uuid.UUID(int=7),
        datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
        1 << 200,
        -(1 << 100),
        "\ud800",
        {(1, 2): {"a"}},
    ]
    assert same(decode_plain(encode_plain(items)), items)
