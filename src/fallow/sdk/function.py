"""A decorated function: called here, or in the pool, once or over a million inputs.

Every way of calling has an async twin of the same name: `f.remote.aio(x)`, `async for y in f.map.aio(xs)`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Generic, ParamSpec, TypeVar, cast

from fallow.model.errors import SettingError
from fallow.sdk.options import Options

P = ParamSpec("P")
R = TypeVar("R")
_UNSET: Any = object()


class Twin:
    """A method and its async twin."""

    __slots__ = ("__wrapped__", "_call", "aio")

    def __init__(self, call: Callable[..., Any], aio: Callable[..., Any]) -> None:
        self._call = call
        self.aio = aio
        self.__wrapped__ = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._call(*args, **kwargs)
        except TypeError as error:
            words = self._reworded(error)
            if words is None:
                raise
        raise TypeError(words)

    def _reworded(self, error: TypeError) -> str | None:
        """What Python says of arguments that do not fit, by the name that the caller knows; None of other errors."""
        own = f"{self._call.__qualname__}()"
        inside = error.__traceback__.tb_next if error.__traceback__ is not None else None
        if inside is not None or not str(error).startswith(own):
            return None
        of = getattr(self._call, "__self__", None)
        return f"{getattr(of, 'name', type(of).__name__)}.{self._call.__name__.lstrip('_')}(){str(error)[len(own) :]}"

    def __repr__(self) -> str:
        return f"<{self._call.__qualname__} (also .aio)>"


class Function(Generic[P, R]):
    """What `@app.function(...)` makes of a function. Calling it runs it right here, as before.

    local(*args): the same. remote(*args): run in the pool and wait. spawn(*args): a job of its own; returns a
    JobHandle at once. map(xs), starmap(xss), for_each(xs): one task per input."""

    __module__: str
    __qualname__: str

    def __init__(
        self, fn: Callable[P, R], options: Options, *, app: str = "", name: str = "", hooks: Any = None
    ) -> None:
        functools.update_wrapper(self, fn)
        if not hasattr(fn, "__qualname__"):
            self.__qualname__ = "<object>"  # a partial or another object that can be called
        self.fn = fn
        self.options = options
        self.app = app
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self._hooks = hooks
        self._calls: Any = None
        self.remote = Twin(self._remote, self._remote_aio)
        self.spawn = Twin(self._spawn, self._spawn_aio)
        self.map = Twin(self._map, self._map_aio)
        self.starmap = Twin(self._starmap, self._starmap_aio)
        self.for_each = Twin(self._for_each, self._for_each_aio)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.local(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<fallow function {self.name!r}{' of app ' + repr(self.app) if self.app else ''}>"

    def __reduce__(self) -> Any:
        # A function of an importable module goes by name: the module travels along, or is installed.
        if self._hooks is None and _is_global(self):
            return self.__qualname__
        return _rebuild, (self.fn, self.options, self.app, self.name, self._hooks)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here and now."""
        return self.fn(*args, **kwargs)

    def with_options(self, **options: Any) -> Function[P, R]:
        """The same function with some options changed."""
        return Function(self.fn, self.options.updated(**options), app=self.app, name=self.name, hooks=self._hooks)

    # ------------------------------------------------------------ one call

    def _remote(self, *args: Any, **kwargs: Any) -> Any:
        calls = self._calls
        if calls is None or calls.ended is not None or calls.client.closed:
            from fallow.sdk.start import lend

            with lend() as inline:
                if inline:
                    return self.fn(*args, **kwargs)
                return self._open_calls().call(args, kwargs)
        if calls.client.nested:
            from fallow.sdk.start import lend

            with lend() as inline:
                return self.fn(*args, **kwargs) if inline else calls.call(args, kwargs)
        return calls.call(args, kwargs)

    async def _remote_aio(self, *args: Any, **kwargs: Any) -> Any:
        import asyncio

        from fallow.sdk.client import current_bridge
        from fallow.sdk.reply import Awaited

        if current_bridge() is not None:
            return await asyncio.to_thread(self._remote, *args, **kwargs)
        calls = self._calls
        if calls is None or calls.ended is not None or calls.client.closed:
            calls = await asyncio.to_thread(self._open_calls)
        future = Awaited()
        calls.submit(future, (args, kwargs))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            calls.client.later(calls.drop, future)
            raise

    def _open_calls(self) -> Any:
        from fallow.sdk.start import open_calls

        calls = open_calls(self)
        self._calls = calls
        return calls

    def _spawn(self, *args: Any, **kwargs: Any) -> Any:
        from fallow.sdk.start import spawn

        return spawn(self, args, kwargs)

    async def _spawn_aio(self, *args: Any, **kwargs: Any) -> Any:
        import asyncio

        return await asyncio.to_thread(self._spawn, *args, **kwargs)

    # ------------------------------------------------------------ many

    def _map(
        self,
        inputs: Iterable[Any],
        *more: Iterable[Any],
        kwargs: dict[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        reduce: Callable[[Any, Any], Any] | None = None,
        initial: Any = _UNSET,
        detached: bool = False,
    ) -> Any:
        """Run over every input, one task each. Returns an iterator over the results, in the order of the inputs.

        Several iterables are zipped, as the built-in map does. kwargs: keyword arguments for every call.
        order_outputs=False: results as they come. return_exceptions: failures are yielded, not raised.
        reduce: combine the results, in order, on the nodes as far as possible; returns the one value.
        detached: returns a JobHandle once all inputs are stored; the job lives on without this script."""
        from fallow.sdk.start import MapCall, run_map, zipped

        call = MapCall(self, "map", inputs, kwargs, order_outputs, return_exceptions, detached=detached)
        if more:
            call.style, call.inputs = "star", zipped(self.name, inputs, *more)
        if reduce is not None:
            call.reduce = reduce
            call.initial = () if initial is _UNSET else (initial,)
        elif initial is not _UNSET:
            raise SettingError("initial=... is the first value of a reduction: give reduce=... with it.")
        return run_map(call)

    def _starmap(self, inputs: Iterable[Iterable[Any]], **options: Any) -> Any:
        """Like map, with each input unpacked into the function's arguments."""
        from fallow.sdk.start import MapCall, map_options, run_map

        return run_map(map_options(MapCall(self, "star", inputs), options, "starmap"))

    def _for_each(
        self, inputs: Iterable[Any], *, kwargs: dict[str, Any] | None = None, ignore_exceptions: bool = False
    ) -> None:
        """Run over every input for what it does; results are dropped. Returns when all is done; raises the first
        failure, unless ignore_exceptions."""
        from fallow.sdk.start import MapCall, run_map

        call = MapCall(self, "map", inputs, kwargs, False, ignore_exceptions, drop_results=True)
        for _ in run_map(call):
            pass

    def _map_aio(self, inputs: Any, *more: Any, **options: Any) -> Any:
        from fallow.sdk.start import map_async

        return map_async(self._map_call_aio, inputs, more, options)

    def _starmap_aio(self, inputs: Any, **options: Any) -> Any:
        from fallow.sdk.start import map_async

        return map_async(functools.partial(self._map_call_aio, style="star"), inputs, (), options)

    def _map_call_aio(self, inputs: Any, more: tuple[Any, ...], options: dict[str, Any], style: str = "map") -> Any:
        from fallow.sdk.start import MapCall, map_options, zipped

        call = map_options(MapCall(self, style, inputs), options, "map" if style == "map" else "starmap")
        if more:
            call.style, call.inputs = "star", zipped(self.name, inputs, *more)
        return call

    async def _for_each_aio(
        self, inputs: Any, *, kwargs: dict[str, Any] | None = None, ignore_exceptions: bool = False
    ) -> None:
        from fallow.sdk.start import MapCall, map_async

        def make(inputs: Any, _more: Any, _options: Any) -> MapCall:
            return MapCall(self, "map", inputs, kwargs, False, ignore_exceptions, drop_results=True)

        async for _ in map_async(make, inputs, (), {}):
            pass

    # ------------------------------------------------------------ what workers get

    def payload(
        self, style: str, kwargs: dict[str, Any] | None = None, reduce: Callable[[Any, Any], Any] | None = None
    ) -> bytes:
        """The function as bytes for workers. Raises UnserialisableFunction."""
        from fallow.sdk.specs import dump_payload

        fn: Any = self.fn
        if self._hooks is None and _is_global(self):
            fn = ByName(self)
        return dump_payload(
            fn, style=style, name=self.name, options=self.options, kwargs=kwargs, cls_hooks=self._hooks, reduce=reduce
        )


class ByName:
    """Stands for the plain function behind a decorated one of an importable module; unpickles as that function."""

    def __init__(self, function: Function[Any, Any]) -> None:
        functools.update_wrapper(self, function.fn)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function.fn(*args, **kwargs)

    def __reduce__(self) -> Any:
        return plain_function, (self._function.__module__, self._function.__qualname__)


def plain_function(module: str, qualname: str) -> Callable[..., Any]:
    """The plain function of that name, undecorated. Raises ImportError, AttributeError."""
    found: Any = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return cast("Callable[..., Any]", found.fn if isinstance(found, Function) else found)


def _is_global(function: Function[Any, Any]) -> bool:
    """Say whether other processes can import it by its name."""
    if function.__module__ in ("__main__", "__mp_main__") or "<" in function.__qualname__:
        return False
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _rebuild(fn: Callable[..., Any], options: Options, app: str, name: str, hooks: Any) -> Function[Any, Any]:
    return Function(fn, options, app=app, name=name, hooks=hooks)


AnyIterator = Iterator[Any] | AsyncIterator[Any]
AnyIterable = Iterable[Any] | AsyncIterable[Any]
