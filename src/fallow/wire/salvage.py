"""What can be read of a page in which some item cannot: an exception whose __init__ wants other arguments, a class that
this process does not have, code of the customer's that raises while it is unpickled.

The C unpickler gives up at the first such item, with all that stand behind it; this one, in Python, goes on.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterable
from io import BytesIO
from typing import Any, ClassVar

from fallow.wire.by_value import ByValuePickler
from fallow.wire.page import Partial, Unreadable


class _Hole:
    """Stands, inside an item, for an object that could not be made. Bears whatever the pickle goes on to do to it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_args: object) -> _Hole:
        return self

    def __setitem__(self, _key: object, _value: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...

    def append(self, _item: object) -> None: ...

    def extend(self, _items: object) -> None: ...

    def add(self, _item: object) -> None: ...

    def update(self, _items: object) -> None: ...


_PICKLE: Any = pickle._Unpickler


class _Unpickler(_PICKLE):  # type: ignore[misc]
    def __init__(self, body: bytes, buffers: Iterable[Any]) -> None:
        super().__init__(BytesIO(body), buffers=buffers)
        self.holed = False

    dispatch: ClassVar = dict(_PICKLE.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:
            return self._hole(error)

    def _hole(self, error: BaseException) -> _Hole:
        self.holed = True
        return _Hole(error)

    def _make(self, count: int, make: Any) -> None:
        """Replace the last `count` of the stack by what `make` makes of them."""
        parts = self.stack[-count:]
        del self.stack[-count:]
        made = next((part for part in (parts[0], *parts[1]) if type(part) is _Hole), None)
        try:
            made = make(*parts) if made is None else made
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            made = self._hole(error)
        self.stack.append(made)

    def _reduce(self) -> None:
        self._make(2, lambda function, args: function(*args))

    def _newobj(self) -> None:
        self._make(2, lambda kind, args: kind.__new__(kind, *args))

    def _newobj_ex(self) -> None:
        self._make(3, lambda kind, args, kwargs: kind.__new__(kind, *args, **kwargs))

    def _build(self) -> None:
        """As load_build, on the object and its state."""
        before = len(self.stack)
        try:
            _PICKLE.load_build(self)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            del self.stack[before - 2 :]
            self.stack.append(self._hole(error))

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _newobj
    dispatch[pickle.NEWOBJ_EX[0]] = _newobj_ex
    dispatch[pickle.BUILD[0]] = _build


class _Finder(ByValuePickler):
    """Walks through an item and notes the holes in it."""

    def __init__(self) -> None:
        super().__init__(BytesIO())
        self.found: list[_Hole] = []

    def persistent_id(self, thing: object) -> object:
        if type(thing) is not _Hole:
            return None
        self.found.append(thing)
        return 0


def salvage(body: bytes | memoryview, *, buffers: Iterable[Any]) -> list[Any]:
    """The items of a pickled list; a Partial where some cannot be read. Raises what unpickling raises where the pickle
    as a whole is broken."""
    unpickler = _Unpickler(bytes(body), buffers)
    items: list[Any] = unpickler.load()
    if unpickler.holed:
        items = Partial(items)
        for offset, item in enumerate(items):
            finder = _Finder()
            with contextlib.suppress(Exception):  # what it cannot walk through is no hole
                finder.dump(item)
            if finder.found:
                items[offset] = Unreadable(finder.found[0].error)
    return items
