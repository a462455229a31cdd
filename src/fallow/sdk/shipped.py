"""Functions as part of an input: an Executor takes any function at any time, and its one standing job runs them all.

This module is imported by workers: it must stay light.
"""

from __future__ import annotations

import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

LOADED_LIMIT = 128
_loaded: OrderedDict[str, Callable[[Any], Any]] = OrderedDict()
_lock = threading.Lock()


def run_shipped(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the standing job of an executor runs for each task."""
    return fn.call((args, kwargs)) if type(fn) is LoadedHere else fn(*args, **kwargs)


class Shipped:
    """A function with its payload, serialised once. Unpickles, on a worker, to one that is loaded once."""

    __slots__ = ("_digest", "_payload")

    def __init__(self, digest: str, payload: Any) -> None:
        self._digest = digest
        self._payload = payload

    def __reduce__(self) -> Any:
        return load_shipped, (self._digest, self._payload)


class LoadedHere:
    """A shipped function on the worker."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call


def load_shipped(digest: str, payload: bytes) -> LoadedHere:
    """Unpickling a Shipped. Raises what loading the function raises."""
    from fallow.wire.code import load_function

    with _lock:
        call = _loaded.get(digest)
        if call is not None:
            _loaded.move_to_end(digest)
            return LoadedHere(call)
    call = load_function(payload).call
    with _lock:
        _loaded[digest] = call
        if len(_loaded) > LOADED_LIMIT:
            _loaded.popitem(last=False)
    return LoadedHere(call)


class Shipper:
    """Serialises functions on the caller's side, each plain function once (a later change of its globals is not
    seen, as with worker processes that were started before it)."""

    def __init__(self, dump: Callable[[Callable[..., Any]], bytes]) -> None:
        self._dump = dump
        self._known: weakref.WeakKeyDictionary[Any, Shipped] = weakref.WeakKeyDictionary()

    def ship(self, fn: Callable[..., Any]) -> Any:
        """What goes into the input in place of the function. Raises UnserialisableFunction."""
        if type(fn) is not types.FunctionType:
            return fn  # builtins are small; partials and bound methods may change from call to call
        shipped = self._known.get(fn)
        if shipped is None:
            from blake3 import blake3

            payload: Any = self._dump(fn)
            shipped = Shipped(blake3(payload).hexdigest(), payload)
            if len(payload) > PUT_ABOVE_BYTES:
                from fallow.sdk.objects import put

                shipped = Shipped(shipped._digest, put(payload))
            self._known[fn] = shipped
        return shipped


PUT_ABOVE_BYTES = 64 * 1024
"""Payloads above this are put into the pool once instead of travelling in every page."""
