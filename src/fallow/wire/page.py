"""Pages: the encoded bytes of consecutive inputs or results. Only the SDK and the worker look inside.

A page is a header, a body and tables, all little-endian:

    header   24 bytes: b"FP", version, kind, failures length (u32), body length (u64), number of buffers (u32), zeros
    body     RANGE: start, stop, step as int64. PLAIN: msgpack list. PICKLE: one pickle (protocol 5) of the list.
             DATA: as wire.plain has it, for results of jobs that may run on strangers' machines
    failures msgpack map from offset in the page to Failure (results only); the items there are None in the body
    table    PICKLE: (offset, length) as u64 of every out-of-band buffer; the buffers start at multiples of 64

Large arrays are out-of-band buffers: they are neither copied to encode nor to decode.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import countOf
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

from fallow.model.errors import UnserialisableError, UnserialisableInput, UnserialisableResult

if TYPE_CHECKING:
    from fallow.wire.plain import NotPlain

_Error = TypeVar("_Error", bound=UnserialisableError)
Buffer = bytes | bytearray | memoryview

RANGE, PLAIN, PICKLE, DATA = 0, 1, 2, 3

_HEADER = struct.Struct("<2sBBIQI4x")
_SPAN = struct.Struct("<qqq")
_ENTRY = struct.Struct("<QQ")
_MAGIC = b"FP"
_VERSION = 1
_ALIGN = 64
_PLAIN_TYPES = frozenset({int, float, str, bool, bytes, type(None)})

_JOIN_BYTES = 64 * 1024
"""Bodies below this are joined with their header; larger ones are not copied."""

IN_BAND_BYTES = 2048
"""Buffers below this are cheaper inside the pickle."""
WRITABLE_COPY_BYTES = 512 * 1024
"""Read-only pages up to this size are copied on decoding, so that the arrays in them may be written to."""


class PageError(ValueError):
    """Bytes that are no page, or one of a newer version."""


class NotPlainPage(PageError):
    """A page that would run code when it is decoded, where plain data alone may come."""


class Partial(list[object]):
    """The items of a page of which some could not be read: Unreadable stands in their place."""


class Unreadable:
    """`error`: what unpickling the item raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Failure(Struct, frozen=True, array_like=True):
    """What stands in a page in place of the result of a task that failed.

    kind: 'raised', 'timeout', 'memory', 'worker_lost', 'node_lost', 'no_room', 'cancelled' or 'unserialisable'.
    exception: cloudpickle of the exception, where it can be brought over.
    type_name: of the exception; of 'unserialisable' the path to the object that is to blame."""

    kind: str
    type_name: str = ""
    message: str = ""
    traceback: str = ""
    exception: bytes | None = None


_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_failures = msgspec.msgpack.Decoder(dict[int, Failure]).decode
_decode_plain = msgspec.msgpack.Decoder().decode


def encode_inputs(items: Sequence[object]) -> list[Buffer]:
    """Encode inputs as segments that make a page one after another. A `range` takes 48 bytes, however long.

    Raises UnserialisableInput that names the item and the object inside it; its `index` is the offset in the page."""
    if type(items) is range:
        try:
            span = _SPAN.pack(items.start, items.stop, items.step)
        except struct.error:
            items = list(items)
        else:
            return [_HEADER.pack(_MAGIC, _VERSION, RANGE, 0, len(span), 0) + span]
    try:
        return _encode(items, b"")
    except _NotSerialisable as error:
        raise _name_item(items, error, UnserialisableInput, "input") from None


def encode_results(
    values: list[object], failures: Mapping[int, Failure] | None = None, plain: bool = False
) -> list[Buffer]:
    """Encode results as segments. `failures`: by offset in `values`; what the list holds there does not matter.
    `plain`: as plain data alone.

    Raises UnserialisableResult that names the first item that cannot be encoded; see `split_unserialisable`."""
    tail = b""
    if failures:
        tail = _encode_msgpack(dict(failures))
        values = list(values)
        for offset in failures:
            values[offset] = None
    if plain:
        return _encode_data(values, tail)
    try:
        return _encode(values, tail)
    except _NotSerialisable as error:
        raise _name_item(values, error, UnserialisableResult, "result") from None


def split_unserialisable(
    values: Sequence[object], named: int = 16, plain: bool = False
) -> dict[int, UnserialisableResult]:
    """Every value that cannot be encoded, by offset; the first `named` say which object inside is to blame."""
    bad: dict[int, UnserialisableResult] = {}
    if plain:
        from fallow.wire.plain import find_not_plain

        found = {offset: find_not_plain(value) for offset, value in enumerate(values)}
        return {offset: _blame_plain(error, offset) for offset, error in found.items() if error is not None}
    for offset, value in enumerate(values):
        try:
            pickle_apart([value])
        except Exception as error:
            if len(bad) < named:
                bad[offset] = _blame(value, error, UnserialisableResult, "the result", offset)
            else:
                bad[offset] = UnserialisableResult(f"the result cannot be serialised: {_words(error)}", "", offset)
    return bad


def decode_items(buffer: Buffer | Any, plain: bool = False) -> Sequence[object]:
    """As decode_page, but items that cannot be unpickled here cost no other: the list is then a Partial."""
    try:
        return decode_page(buffer, plain)
    except (PageError, KeyboardInterrupt):
        raise
    except BaseException:
        from fallow.wire.salvage import salvage

        return decode_page(buffer, plain, salvage)


def decode_page(
    buffer: Buffer | Any, plain: bool = False, load: Callable[..., list[Any]] = pickle.loads
) -> Sequence[object]:
    """The items of a page: a list, or a range. Failures appear as Failure objects. Large arrays lie in `buffer`
    itself, which must stay unchanged while they live; they are read-only where it is (but see WRITABLE_COPY_BYTES).
    `plain`: the bytes may be a stranger's, so nothing is unpickled, whatever they say of themselves.

    Raises PageError for what is no page, NotPlainPage, and whatever unpickling raises (as ModuleNotFoundError)."""
    view = memoryview(buffer).cast("B")
    kind, failures_size, body_size, count = _read_header(view)
    if plain:
        return _decode_data(view, kind, failures_size, body_size)
    body_end = _HEADER.size + body_size
    body = view[_HEADER.size : body_end]
    if kind == RANGE:
        return range(*_SPAN.unpack(body))
    if kind == PLAIN:
        items: list[object] = _decode_plain(body)
    elif kind == DATA:
        return _decode_data(view, kind, failures_size, body_size)
    else:
        if count and view.readonly and len(view) <= WRITABLE_COPY_BYTES:
            view = memoryview(bytearray(view))
            body = view[_HEADER.size : body_end]
        table = view[body_end + failures_size : body_end + failures_size + count * _ENTRY.size]
        items = load(body, buffers=[view[at : at + size] for at, size in _ENTRY.iter_unpack(table)])
    if failures_size:
        for offset, failure in _decode_failures(view[body_end : body_end + failures_size]).items():
            items[offset] = failure
    return items


def _decode_data(view: memoryview, kind: int, failures_size: int, body_size: int) -> Sequence[object]:
    from fallow.wire.plain import PlainError, decode_plain

    if kind not in (PLAIN, DATA):
        raise NotPlainPage(
            "a machine that may be a stranger's answered with more than plain data; it was not opened. "
            "Whoever runs that machine has changed what came of the task, or runs another version of Fallow."
        )
    body_end = _HEADER.size + body_size
    try:
        items = decode_plain(view[_HEADER.size : body_end])
        failures = _decode_failures(view[body_end : body_end + failures_size]) if failures_size else {}
    except (PlainError, msgspec.MsgspecError) as error:
        raise PageError(str(error)) from None
    for offset, failure in failures.items():
        if not 0 <= offset < len(items):
            raise PageError(f"the page names a failure at {offset} of {len(items)} items")
        items[offset] = failure
    return items


def _encode_data(values: list[object], failures: bytes) -> list[Buffer]:
    from fallow.wire.plain import NotPlain, encode_plain

    kind = PLAIN
    try:
        if not set(map(type, values)) <= _PLAIN_TYPES:
            raise OverflowError
        body = _encode_msgpack(values)
    except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
        kind = DATA
        try:
            body = encode_plain(values)
        except NotPlain:
            bad = split_unserialisable(values, plain=True)
            raise next(iter(bad.values())) from None
    return _join(_HEADER.pack(_MAGIC, _VERSION, kind, len(failures), len(body), 0), body, failures)


def _blame_plain(error: NotPlain, offset: int) -> UnserialisableResult:
    from fallow.wire.plain import RETURN_INSTEAD

    path = f"the result{' -> ' + error.where if error.where else ''}"
    return UnserialisableResult(
        f"{path} is {error.what}. A job in a sandbox may run on strangers' machines, whose results are read as plain "
        f"data only: {RETURN_INSTEAD}.",
        path,
        offset,
    )


def page_size(segments: Sequence[Buffer]) -> int:
    """Bytes of a page given as segments."""
    return sum(map(len, segments))


def _read_header(view: memoryview) -> tuple[int, int, int, int]:
    if len(view) < _HEADER.size:
        raise PageError(f"a page has at least {_HEADER.size} bytes; these are {len(view)}")
    magic, version, kind, failures_size, body_size, count = _HEADER.unpack_from(view)
    if magic != _MAGIC or version != _VERSION or kind > DATA:
        raise PageError("these bytes are no page that this version of Fallow knows")
    if len(view) < _HEADER.size + body_size + failures_size + count * _ENTRY.size:
        raise PageError("the page is cut short")
    return kind, failures_size, body_size, count


class _NotSerialisable(Exception):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _are_plain(items: Sequence[object]) -> bool:
    kind = type(items[0]) if items else int
    if (
        kind is type(items[-1] if items else 0)
        and kind in _PLAIN_TYPES
        and countOf(map(type, items), kind) == len(items)
    ):
        return True  # the usual case, in less time
    return set(map(type, items)) <= _PLAIN_TYPES


def _encode(items: Sequence[object], failures: bytes) -> list[Buffer]:
    if _are_plain(items):
        try:
            body = _encode_msgpack(items)
        except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
            pass  # integers over 64 bits, lone surrogates
        else:
            return _join(_HEADER.pack(_MAGIC, _VERSION, PLAIN, len(failures), len(body), 0), body, failures)
    try:
        body, buffers = pickle_apart(items if type(items) is list else list(items))
    except Exception as error:
        raise _NotSerialisable(error) from None
    header = _HEADER.pack(_MAGIC, _VERSION, PICKLE, len(failures), len(body), len(buffers))
    if not buffers:
        return _join(header, body, failures)
    at = len(header) + len(body) + len(failures) + len(buffers) * _ENTRY.size
    table = bytearray()
    rest: list[Buffer] = []
    for buffer in buffers:
        if gap := -at % _ALIGN:
            rest.append(bytes(gap))
        table += _ENTRY.pack(at + gap, len(buffer))
        rest.append(buffer)
        at += gap + len(buffer)
    return [*_join(header, body, failures + bytes(table)), *rest]


def _join(header: bytes, body: bytes, tail: bytes) -> list[Buffer]:
    return [header + body + tail] if len(body) < _JOIN_BYTES else [header, body, tail]


def pickle_apart(items: object) -> tuple[bytes, list[memoryview]]:
    """A pickle, by value where that is needed, and what memory of arrays goes with it. Raises what pickling raises."""
    buffers: list[memoryview] = []

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < IN_BAND_BYTES:
            return True
        buffers.append(raw)
        return False

    if not _modules_by_value():
        try:
            body = pickle.dumps(items, protocol=5, buffer_callback=out_of_band)
            if b"__main__" not in body:  # what is defined there exists in no other process: by value
                return body, buffers
        except (Exception, SystemExit):  # lambdas, local classes; what cannot be pickled at all fails again below
            pass
        buffers.clear()
    from fallow.wire.by_value import ByValuePickler

    file = io.BytesIO()
    try:
        ByValuePickler(file, buffer_callback=out_of_band).dump(items)
    except SystemExit as error:  # of an object's own code: no reason for this process to end
        raise pickle.PicklingError(f"SystemExit({error.code!r}) was raised") from None
    return file.getvalue(), buffers


def _modules_by_value() -> bool:
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and bool(cloudpickle.list_registry_pickle_by_value())


def _name_item(items: Sequence[object], failed: _NotSerialisable, error_type: type[_Error], noun: str) -> _Error:
    for offset, item in enumerate(items):
        try:
            pickle_apart([item])
        except Exception as error:
            return _blame(item, error, error_type, f"{noun} {offset}", offset)
    return error_type(f"the {noun}s cannot be serialised together: {_words(failed.cause)}")


def _blame(item: object, error: Exception, error_type: type[_Error], noun: str, offset: int) -> _Error:
    from fallow.wire.offender import find_offender

    where, what = find_offender(item)
    path = f"{noun}{' -> ' + where if where else ''}"
    advice = "; return a list of what it yields" if what.startswith("a generator") and "result" in noun else ""
    return error_type(f"{path} is {what}, which cannot be serialised ({_words(error)}){advice}", path, offset)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
