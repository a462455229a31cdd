"""joblib's batches as arguments of calls: what large arrays hold, wherever they sit in a batch, is shipped once and not
with every batch that has it.

Workers import this module: it must stay light.
"""

from __future__ import annotations

import pickle
import sys
import weakref
from collections.abc import Callable
from typing import Any, cast

APART_BYTES = 1 << 20
"""Memory of arrays above this is shipped once, and mapped by every task that gets it, read-only as joblib has it."""


class Packer:
    """For one Parallel call. What is seen for the first time travels in its batch, which is dropped when it is done;
    what comes again is put into the pool: arrays that one task alone gets would fill its disk."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], weakref.ref[Any]] = {}
        """By address and size: the array whose memory it is."""
        self._shipped: dict[tuple[int, int], tuple[Any, Any]] = {}
        """The array, which is kept so that nothing else comes to lie there, and its Ref."""
        self._in_one_piece: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def pack(self, batch: Any) -> tuple[bytes, list[Any]]:
        """What `run_packed` takes. Raises whatever pickling the batch raises."""
        from fallow.wire.page import pickle_apart

        items = getattr(batch, "items", None)
        if isinstance(items, list) and "numpy" in sys.modules:
            batch.items = [self._item_whole(item) for item in items]
        body, buffers = pickle_apart(batch)
        return body, [self._buffer(buffer) for buffer in buffers]

    def clear(self) -> None:
        """Arrays may have been changed since."""
        self._seen.clear()
        self._shipped.clear()
        self._in_one_piece.clear()

    def _buffer(self, buffer: memoryview) -> Any:
        if buffer.nbytes < APART_BYTES:
            return pickle.PickleBuffer(buffer)
        read_only = pickle.PickleBuffer(buffer.toreadonly())
        owner = _owner(buffer.obj)
        if owner is None:
            return read_only
        import numpy as np

        key = (np.frombuffer(buffer, np.uint8).__array_interface__["data"][0], buffer.nbytes)
        if key in self._shipped:
            return self._shipped[key][1]
        seen = self._seen.get(key)
        if seen is None or seen() is not owner:
            self._seen[key] = weakref.ref(owner)
            return read_only
        from fallow.sdk.objects import put

        ref = put(read_only)
        self._shipped[key] = owner, ref
        return ref

    def _item_whole(self, item: Any) -> Any:
        fn, args, kwargs = item
        return fn, tuple(map(self._whole, args)), {name: self._whole(value) for name, value in kwargs.items()}

    def _whole(self, value: Any) -> Any:
        """Large arrays among the arguments themselves as ones that pickle apart: in one piece, and no memmaps."""
        import numpy as np

        if (
            not isinstance(value, np.ndarray)
            or value.nbytes < APART_BYTES
            or type(value) not in (np.ndarray, np.memmap)
        ):
            return value
        if value.flags.c_contiguous or value.flags.f_contiguous:
            return value.view(np.ndarray) if type(value) is np.memmap else value
        known = self._in_one_piece.get(id(value))
        if known is None or known[0]() is not value:
            known = weakref.ref(value, _forgetter(self._in_one_piece, id(value))), np.ascontiguousarray(value)
            self._in_one_piece[id(value)] = known
        return known[1]


def _forgetter(known: dict[int, Any], key: int) -> Callable[[Any], None]:
    return lambda _: cast(None, known.pop(key, None))


def _owner(array: Any) -> Any:
    """The array that a view shows a part of, which lives as long as the memory; None for what is no array."""
    import numpy as np

    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    return array if isinstance(array, np.ndarray) else None


def run_packed(body: bytes, buffers: list[Any]) -> Any:
    """On a worker: what the batch returns."""
    return pickle.loads(body, buffers=buffers)()
