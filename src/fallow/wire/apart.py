"""Takes a pickled page apart, so that one item is unpickled and no other: an item may end whoever unpickles it (by a
broken C extension, or for want of memory), and the tasks beside it are to run all the same.

The pickle is read by an unpickler that calls nothing: where it would make an object, it notes what it would call. What
was noted of one item is then pickled again, by itself, and that pickle is loaded in earnest.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from io import BytesIO
from typing import Any, ClassVar

_UNSET: Any = object()


class NotTakenApart(Exception):
    """The pickle does what this module does not know."""


class _Name:
    """A class or function, by its name."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self) -> None:
        raise NotTakenApart  # there only because the pickler asks that what makes an object can be called


class _Made:
    """An object that a call makes, with what is done to it afterwards."""

    __slots__ = ("args", "entries", "function", "items", "setter", "state")

    def __init__(self, function: Any, args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.state = _UNSET
        self.setter: Any = None
        self.items: list[Any] = []
        self.entries: list[tuple[Any, Any]] = []

    def __call__(self) -> None:
        raise NotTakenApart  # as above

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def __reduce__(self) -> tuple[Any, ...]:
        state = None if self.state is _UNSET else self.state
        return self.function, self.args, state, iter(self.items), iter(self.entries), self.setter


def _new(kind: Any, *args: Any) -> Any:
    return kind.__new__(kind, *args)


def _new_with_names(kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kind.__new__(kind, *args, **kwargs)


_PICKLE: Any = pickle._Unpickler


class _Reader(_PICKLE):  # type: ignore[misc]
    """The unpickler that calls nothing."""

    dispatch: ClassVar = dict(_PICKLE.dispatch)
    unnamed: Any = None
    """What the last call made, while the pickle has not kept it for later."""

    def find_class(self, module: str, name: str) -> Any:
        return _Name(module, name)

    def _make(self, function: Any, args: Any) -> None:
        if type(args) is not tuple:
            raise NotTakenApart
        self.unnamed = _Made(function, args)
        self.stack.append(self.unnamed)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self._make(self.stack.pop(), args)

    def _newobj(self) -> None:
        args = self.stack.pop()
        self._make(_new, (self.stack.pop(), *args))

    def _newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        self._make(_new_with_names, (self.stack.pop(), args, kwargs))

    def _build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if type(made) is not _Made or made.state is not _UNSET:
            raise NotTakenApart
        made.state = state

    def _memoize(self) -> None:
        self.unnamed = None
        _PICKLE.load_memoize(self)

    def _pop(self) -> None:
        """A call whose result is dropped sets the state of what it was called with."""
        call = self.stack[-1] if self.stack else None
        if call is None or call is not self.unnamed:
            _PICKLE.load_pop(self)
            return
        if len(call.args) != 2 or type(call.args[0]) is not _Made or call.args[0].state is not _UNSET:
            raise NotTakenApart
        made, made.state = call.args
        made.setter = call.function
        self.stack.pop()

    def _refuse(self) -> None:
        raise NotTakenApart

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _newobj
    dispatch[pickle.NEWOBJ_EX[0]] = _newobj_ex
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.MEMOIZE[0]] = _memoize
    dispatch[pickle.POP[0]] = _pop
    dispatch[pickle.INST[0]] = dispatch[pickle.OBJ[0]] = _refuse


class _Writer(pickle.Pickler):
    """Pickles what was noted. Names, and buffers that lie in the page, stay outside."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.outside: list[Any] = []

    def persistent_id(self, thing: Any) -> int | None:
        if type(thing) is not _Name and type(thing) is not memoryview:
            return None
        self.outside.append(thing)
        return len(self.outside) - 1


class _Maker(pickle.Unpickler):
    def __init__(self, file: BytesIO, outside: list[Any]) -> None:
        super().__init__(file)
        self._outside = outside

    def persistent_load(self, number: int) -> Any:
        thing = self._outside[number]
        return self.find_class(thing.module, thing.name) if type(thing) is _Name else thing


class Item:
    """An item that is not unpickled yet."""

    __slots__ = ("_noted",)

    def __init__(self, noted: Any) -> None:
        self._noted = noted

    def make(self) -> Any:
        """Unpickle it. Raises what that raises."""
        file = BytesIO()
        writer = _Writer(file)
        writer.dump(self._noted)
        file.seek(0)
        return _Maker(file, writer.outside).load()


def take_apart(body: bytes | memoryview, *, buffers: Iterable[Any]) -> list[Item]:
    """The items of a pickled list. Raises NotTakenApart, and what a broken pickle raises."""
    items = _Reader(BytesIO(bytes(body)), buffers=buffers).load()
    if type(items) is not list:
        raise NotTakenApart
    return [Item(noted) for noted in items]
