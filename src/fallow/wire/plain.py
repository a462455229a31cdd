"""Values as plain data: what a stranger's machine may answer with, since reading it runs nobody's code.

None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, complex, dates and times, Decimal, UUID, and
NumPy arrays and scalars of numbers, text and dates. MessagePack carries them; what it does not know goes as an
extension type (its code is the position in _CODES), whose bytes are MessagePack again.
"""

from __future__ import annotations

import datetime
import decimal
import importlib
import math
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.msgpack import Ext

MOST_DEPTH = 200
"""Containers within containers; deeper ones are refused on both sides."""
_ARRAY_KINDS = frozenset("biufcSUmM")
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_INTEGER_TEXT_LIMIT = 1 << 20

(
    TUPLE,
    SET,
    FROZENSET,
    PAIRS,
    INTEGER,
    TEXT,
    COMPLEX,
    DATETIME,
    DATE,
    TIME,
    SPAN,
    DECIMAL,
    UUID,
    ARRAY,
    SCALAR,
    BYTES,
) = range(1, 17)
_EXACT = frozenset({float, bool, bytes, type(None)})

RETURN_INSTEAD = "return numbers, text, bytes, None, lists, tuples, dicts, sets, dates or NumPy arrays instead"


class NotPlain(TypeError):
    """`where`: the path to the object inside the value; `what`: what it is."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{what} at {where}" if where else what)
        self.where = where
        self.what = what


class PlainError(ValueError):
    """Bytes that are no plain data."""


_pack = msgspec.msgpack.Encoder().encode


def encode_plain(items: Sequence[object]) -> bytes:
    """A list of values. Raises NotPlain for the first that is not plain data."""
    return _pack([_reduced(item, f"[{at}]", 0) for at, item in enumerate(items)])


def find_not_plain(value: object) -> NotPlain | None:
    """What inside the value is not plain data; None where all of it is."""
    try:
        _reduced(value, "", 0)
    except NotPlain as error:
        return error
    return None


def decode_plain(data: bytes | memoryview) -> list[object]:
    """The list of values. Raises PlainError. Arrays are copies of their own."""
    try:
        items = msgspec.msgpack.decode(data, ext_hook=_restored)
    except PlainError:
        raise
    except Exception as error:  # whatever a stranger's bytes bring about in constructors of the standard library
        raise PlainError(f"these bytes are no plain data ({type(error).__name__}: {error})") from None
    if not isinstance(items, list):
        raise PlainError("these bytes are no list of plain data")
    return items


# ---------------------------------------------------------------- encoding


def _reduced(value: Any, where: str, depth: int) -> Any:
    kind = type(value)
    if kind in _EXACT:
        return value
    if kind is int:
        return value if _SMALLEST <= value <= _LARGEST else Ext(INTEGER, _pack(hex(value)))
    if kind is str:
        return value if value.isascii() or _is_text(value) else Ext(TEXT, value.encode("utf-8", "surrogatepass"))
    if depth > MOST_DEPTH:
        raise NotPlain(where, f"data nested more than {MOST_DEPTH} deep")
    if kind is list:
        return [_reduced(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
    if kind is dict:
        return _reduced_dict(value, where, depth)
    if kind in _SEQUENCES:
        items = [_reduced(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
        return Ext(_SEQUENCES[kind], _pack(items))
    simple = _SIMPLE.get(kind)
    if simple is not None:
        code, dump = simple
        return Ext(code, _pack(dump(value)))
    array = _reduced_array(value, kind, where)
    if array is not None:
        return array
    raise NotPlain(where, f"a {kind.__module__}.{kind.__qualname__}".replace("a builtins.", "a "))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reduced_dict(value: dict[Any, Any], where: str, depth: int) -> Any:
    named = all(type(key) is str for key in value)
    pairs = []
    for key, item in list(value.items()):
        pairs.append(
            (_reduced(key, f"a key of {where or 'it'}", depth + 1), _reduced(item, f"{where}[{key!r:.60}]", depth + 1))
        )
    if named and all(type(key) is str for key, _ in pairs):
        return dict(pairs)
    return Ext(PAIRS, _pack([list(pair) for pair in pairs]))


_SEQUENCES: dict[type, int] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}
_SIMPLE: dict[type, tuple[int, Callable[[Any], Any]]] = {
    complex: (COMPLEX, lambda value: [value.real, value.imag]),
    datetime.datetime: (DATETIME, lambda value: _fixed(value).isoformat()),
    datetime.date: (DATE, lambda value: value.isoformat()),
    datetime.time: (TIME, lambda value: _fixed(value).isoformat()),
    datetime.timedelta: (SPAN, lambda value: [value.days, value.seconds, value.microseconds]),
    decimal.Decimal: (DECIMAL, str),
    uuid.UUID: (UUID, lambda value: value.bytes),
    bytearray: (BYTES, bytes),
}


def _fixed(value: Any) -> Any:
    """With its offset from UTC instead of a time zone's rules."""
    if value.tzinfo is None or (offset := value.utcoffset()) is None:
        return value
    return value.replace(tzinfo=datetime.timezone(offset))


def _reduced_array(value: Any, kind: type, where: str) -> Ext | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
        return None
    is_scalar = isinstance(value, numpy.generic)
    if value.dtype.kind not in _ARRAY_KINDS or (kind is not numpy.ndarray and not is_scalar):
        raise NotPlain(where, f"a NumPy {kind.__name__} of {value.dtype}")
    data = [value.dtype.str, list(value.shape), numpy.ascontiguousarray(value).tobytes()]
    return Ext(SCALAR if is_scalar else ARRAY, _pack(data))


# ---------------------------------------------------------------- decoding


def _restored(code: int, data: memoryview) -> Any:
    if code == TEXT:
        return bytes(data).decode("utf-8", "surrogatepass")
    content = msgspec.msgpack.decode(data, ext_hook=_restored)
    restore = _RESTORE.get(code)
    if restore is None:
        raise PlainError(f"an extension of code {code}, which is not known")
    return restore(content)


def _integer(text: str) -> int:
    if len(text) > _INTEGER_TEXT_LIMIT:
        raise PlainError("an integer of more than a million digits")
    return int(text, 16)


def _array(content: list[Any]) -> Any:
    dtype_text, shape, data = content
    try:
        numpy: Any = importlib.import_module("numpy")  # an environment may do without it
    except ImportError:
        raise PlainError("the result holds a NumPy array: install numpy here to read it") from None
    if not isinstance(dtype_text, str) or not isinstance(data, bytes) or len(dtype_text) > 40:
        raise PlainError("an array that is none")
    dtype = numpy.dtype(dtype_text)
    if dtype.kind not in _ARRAY_KINDS or dtype.hasobject or dtype.names is not None:
        raise PlainError(f"an array of {dtype_text}")
    sizes = [size for size in shape if type(size) is int and size >= 0]
    if len(sizes) != len(shape) or len(sizes) > 32 or math.prod(sizes) * dtype.itemsize != len(data):
        raise PlainError("an array whose size does not fit its shape")
    if not dtype.itemsize or not data:
        return numpy.zeros(sizes, dtype)
    return numpy.frombuffer(data, dtype).reshape(sizes).copy()


def _pairs(content: list[list[Any]]) -> dict[Any, Any]:
    return {key: value for key, value in content}  # noqa: C416 - each item must be a pair


_RESTORE: dict[int, Callable[[Any], Any]] = {
    TUPLE: tuple,
    SET: set,
    FROZENSET: frozenset,
    PAIRS: _pairs,
    INTEGER: _integer,
    COMPLEX: lambda content: complex(float(content[0]), float(content[1])),
    DATETIME: datetime.datetime.fromisoformat,
    DATE: datetime.date.fromisoformat,
    TIME: datetime.time.fromisoformat,
    SPAN: lambda content: datetime.timedelta(int(content[0]), int(content[1]), int(content[2])),
    DECIMAL: lambda content: decimal.Decimal(str(content)),
    UUID: lambda content: uuid.UUID(bytes=bytes(content)),
    ARRAY: _array,
    SCALAR: lambda content: _array(content)[()],
    BYTES: bytearray,
}
