"""Which object inside something makes it impossible to pickle, and where it sits: for errors that help."""

from __future__ import annotations

import functools
import inspect
import io
import types
from collections.abc import Iterator
from typing import Any

from cloudpickle import cloudpickle as _impl

from fallow.wire.by_value import pickles

MAX_TRIES = 500
"""Objects that are tried at most; each try pickles one."""
MAX_DEPTH = 12

Child = tuple[str, object]


def find_offender(obj: object) -> tuple[str, str]:
    """(where, what): the path from `obj` to the innermost object that cannot be pickled ('' for itself), and what
    that is, in words. `obj` is known not to be picklable."""
    budget = [MAX_TRIES]
    path: list[str] = []
    seen = {id(obj)}
    current = obj
    while len(path) < MAX_DEPTH:
        for label, child in _children(current):
            if id(child) in seen:
                continue
            if budget[0] <= 0:
                break
            budget[0] -= 1
            if not pickles(child):
                path.append(label)
                seen.add(id(child))
                current = child
                break
        else:
            break
        if budget[0] <= 0:
            break
    return " -> ".join(path), describe(current)


def describe(obj: object) -> str:
    """Say what an object is, for a person."""
    name = f"{type(obj).__module__}.{type(obj).__qualname__}".removeprefix("builtins.")
    if isinstance(obj, io.IOBase):
        target = getattr(obj, "name", None)
        return f"an open file {target!r}" if target is not None else f"an open stream ({name})"
    if inspect.isgenerator(obj) or inspect.isasyncgen(obj):
        return f"a generator ({obj.__qualname__})"
    if inspect.iscoroutine(obj):
        return f"a coroutine ({obj.__qualname__}); was an `await` forgotten?"
    if isinstance(obj, types.ModuleType):
        return f"the module {obj.__name__!r}"
    if type(obj).__module__ == "_thread" or name.startswith("threading."):
        return f"a lock or thread ({name})"
    if name == "_socket.socket" or name == "socket.socket":
        return f"a socket ({name})"
    if isinstance(obj, type):
        return f"the class {obj.__qualname__!r}"
    if inspect.isroutine(obj):
        return f"the function {getattr(obj, '__qualname__', name)!r}"
    article = "an" if name.rpartition(".")[2][:1].lower() in "aeiou" else "a"
    return f"{article} object of type {name}"


def _children(obj: object) -> Iterator[Child]:
    if isinstance(obj, types.FunctionType):
        yield from _function_children(obj)
    elif isinstance(obj, types.MethodType):
        yield f"the object that method {obj.__name__!r} is bound to", obj.__self__
        yield f"method {obj.__name__!r}", obj.__func__
    elif isinstance(obj, functools.partial):
        yield "the partial's function", obj.func
        for number, value in enumerate(obj.args):
            yield f"the partial's argument {number}", value
        for name, value in obj.keywords.items():
            yield f"the partial's argument {name!r}", value
    elif isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield f"[{_short(key)}]", value
            yield f"key {_short(key)}", key
    elif isinstance(obj, list | tuple):
        for number, value in enumerate(obj):
            yield f"[{number}]", value
    elif isinstance(obj, set | frozenset):
        for value in obj:
            yield f"element {_short(value)}", value
    elif isinstance(obj, staticmethod | classmethod):
        yield f"function {obj.__func__.__name__!r}", obj.__func__
    elif isinstance(obj, type):
        for name, value in list(vars(obj).items()):
            if name not in ("__dict__", "__weakref__"):
                yield f"attribute {name!r} of class {obj.__qualname__!r}", value
    elif not isinstance(obj, types.ModuleType | io.IOBase):
        yield from _instance_children(obj)


def _function_children(function: types.FunctionType) -> Iterator[Child]:
    of = f"of {function.__qualname__!r}"
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"closure variable {name!r} {of}", cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    for name in _impl._extract_code_globals(function.__code__):
        if name in function.__globals__:
            yield f"global {name!r} used by {function.__qualname__!r}", function.__globals__[name]
    for number, value in enumerate(function.__defaults__ or ()):
        yield f"default value {number} {of}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default value of {name!r} {of}", value
    for name, value in vars(function).items():
        yield f"attribute {name!r} {of}", value


def _instance_children(obj: object) -> Iterator[Child]:
    state: Any = getattr(obj, "__dict__", None)
    if type(obj).__getstate__ is not object.__getstate__:  # what is pickled, not what is there
        try:
            state = obj.__getstate__()
        except Exception:
            return
        if not isinstance(state, dict):
            yield "its state", state
            return
    for name, value in list((state or {}).items()):
        yield f"attribute {name!r}", value
    for kind in type(obj).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield f"attribute {name!r}", getattr(obj, name)
    if isinstance(obj, BaseException):
        yield "its arguments", obj.args
    yield f"class {type(obj).__qualname__!r}", type(obj)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
