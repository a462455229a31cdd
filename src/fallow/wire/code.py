"""Function payloads: a customer's function with all that it needs, as bytes that only a worker opens."""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import blake3
import msgspec
from msgspec import Struct

from fallow.model.errors import PythonMismatch, UnserialisableFunction
from fallow.wire.by_value import Sources, dumps, dumps_with_sources, pickles, show_sources

Style = Literal["map", "star", "call"]


class ClassHooks(NamedTuple):
    """A class whose methods are tasks. One instance is made per worker: `cls(*args, **kwargs)`, then the methods
    named in `enter` run in order; those in `exit` when the worker gives it up."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    enter: tuple[str, ...] = ()
    exit: tuple[str, ...] = ()


class _Payload(Struct, frozen=True, array_like=True):
    version: int
    name: str
    style: str
    python: str
    body: bytes
    """Pickle of (function or method name, kwargs, reduce, retry_on)."""
    hooks: bytes
    """Pickle of ClassHooks; empty for plain functions."""
    sources: Sources


__all__ = ["ClassHooks", "Loaded", "Style", "dump_function", "dumps", "load_function", "python_minor"]

_VERSION = 1
_decoder = msgspec.msgpack.Decoder(_Payload)


def dump_function(
    fn: Callable[..., Any] | str,
    *,
    style: Style = "map",
    kwargs: dict[str, Any] | None = None,
    cls_hooks: ClassHooks | Sequence[Any] | None = None,
    reduce: Callable[[Any, Any], Any] | None = None,
    retry_on: tuple[type[BaseException], ...] | None = None,
    name: str = "",
) -> bytes:
    """Pack a function. style 'map': fn(item, **kwargs); 'star': fn(*item, **kwargs); 'call': item is (args, kwargs).

    With `cls_hooks`, `fn` is the method, or its name. `reduce(a, b)` combines two results (associative, `a` is the
    earlier one). `retry_on`: exceptions that are worth another attempt; None: every Exception.
    Raises UnserialisableFunction that names the offending object and where it sits."""
    if cls_hooks is not None:
        hooks = dumps_named(tuple(ClassHooks(*cls_hooks)), f"the class {cls_hooks[0].__qualname__!r}")
        fn = fn if isinstance(fn, str) else fn.__name__
    else:
        hooks = (b"", {})
        if not callable(fn):
            raise UnserialisableFunction(f"{fn!r} is not callable: give a function", "the function")
    label = name or getattr(fn, "__qualname__", None) or str(fn)
    body = dumps_named((fn, dict(kwargs or {}), reduce, retry_on), f"{label!r}")
    sources = dict(hooks[1])
    for filename, parts in body[1].items():
        sources[filename] = {**sources.get(filename, {}), **parts}
    return msgspec.msgpack.encode(_Payload(_VERSION, label, style, python_minor(), body[0], hooks[0], sources))


def python_minor() -> str:
    """This interpreter's version as '3.11': code pickled by value runs on the same one only."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def dumps_named(obj: tuple[Any, ...], label: str) -> tuple[bytes, Sources]:
    """Pickle with sources. Raises UnserialisableFunction that names what in it cannot be pickled."""
    try:
        return dumps_with_sources(obj)
    except Exception as error:
        from fallow.wire.offender import find_offender

        part = next((part for part in obj if not pickles(part)), obj)
        where, what = find_offender(part)
        place = where or label
        raise UnserialisableFunction(
            f"{label} cannot be sent to workers: {place} is {what}, which cannot be serialised "
            f"({type(error).__name__}: {error}). Open or make it inside the function, or pass it as an input.",
            place,
        ) from None


class Loaded:
    """A function ready to run. `call(item)` runs one task; `close()` gives up the instance of a class."""

    def __init__(
        self,
        name: str,
        call: Callable[[Any], Any],
        reduce: Callable[[Any, Any], Any] | None,
        retry_on: tuple[type[BaseException], ...],
        sources: Sources,
        close: Callable[[], None],
    ) -> None:
        self.name = name
        self.call = call
        self.reduce = reduce
        self.retry_on = retry_on
        self._sources = sources
        self.close = close

    def show_sources(self) -> None:
        """Let tracebacks show this function's lines (two versions of a file may be loaded; the last shown wins)."""
        show_sources(self._sources)


def rebuild_exception(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """An exception as it was, without a call of its __init__, whose arguments nobody kept."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def load_function(payload: bytes | memoryview) -> Loaded:
    """Unpack, import what it imports, make the instance and run its `enter` methods.

    Raises PythonMismatch, and whatever the customer's modules and methods raise."""
    packed = _decoder.decode(payload)
    if packed.version != _VERSION or packed.python != python_minor():
        raise PythonMismatch(
            f"{packed.name!r} was packed by Python {packed.python}, and this worker runs {python_minor()}. "
            "Run the script with the same minor version, or give the environment that version."
        )
    show_sources(packed.sources)
    fn, kwargs, reduce, retry_on = pickle.loads(packed.body)
    close: Callable[[], None] = _nothing
    if packed.hooks:
        instance = _instances.enter(packed.hooks)
        close = functools.partial(_instances.leave, packed.hooks)
        fn = getattr(instance, fn)
    call = _adapt(fn, packed.style, kwargs)
    return Loaded(packed.name, call, reduce, (Exception,) if retry_on is None else retry_on, packed.sources, close)


def _nothing() -> None:
    pass


def _adapt(fn: Callable[..., Any], style: str, kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    if inspect.iscoroutinefunction(fn):
        fn = _run_to_end(fn)
    if kwargs:
        fn = functools.partial(fn, **kwargs)
    if style == "map":
        return fn
    if style == "star":
        return lambda item: fn(*item)
    return lambda item: fn(*item[0], **item[1])


def _run_to_end(fn: Callable[..., Any]) -> Callable[..., Any]:
    import asyncio

    runner = asyncio.Runner()  # one loop for all tasks, so that clients kept in globals stay usable
    return lambda *args, **kwargs: runner.run(fn(*args, **kwargs))


class _Instances:
    """Instances of classes by their payload: the methods of one class share one instance in a worker."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[Any, ClassHooks, int]] = {}

    def enter(self, packed: bytes) -> Any:
        key = blake3.blake3(packed).hexdigest()
        if key in self._live:
            instance, hooks, users = self._live[key]
            self._live[key] = (instance, hooks, users + 1)
            return instance
        hooks = ClassHooks(*pickle.loads(packed))
        instance = hooks.cls(*hooks.args, **hooks.kwargs)
        for name in hooks.enter:
            getattr(instance, name)()
        self._live[key] = (instance, hooks, 1)
        return instance

    def leave(self, packed: bytes) -> None:
        key = blake3.blake3(packed).hexdigest()
        instance, hooks, users = self._live.pop(key)
        if users > 1:
            self._live[key] = (instance, hooks, users - 1)
            return
        for name in hooks.exit:
            getattr(instance, name)()


_instances = _Instances()
