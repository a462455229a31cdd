"""Pickling of functions and classes by value, so that tracebacks elsewhere show the author's file and lines.

cloudpickle (3.1) replaces the file name of such code by '<dynamic-code>'. Here the name stays, and the source lines of
every code object that went into the pickle can be collected, to be shown where the file does not exist.
"""

from __future__ import annotations

import io
import linecache
import pickle
import types
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _impl

SOURCE_LIMIT_BYTES = 256 * 1024
"""Most source text that travels with one function."""

Sources = dict[str, dict[int, str]]
"""By file name: source text by the number of its first line."""

_FILENAME = _impl._code_reduce(compile("0", "<probe>", "eval"))[1].index("<dynamic-code>")


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    make, arguments = _impl._code_reduce(code)
    return make, (*arguments[:_FILENAME], code.co_filename, *arguments[_FILENAME + 1 :])


def _refuse_file(file: io.TextIOWrapper) -> tuple[Any, ...]:
    # cloudpickle would quietly send the contents of a file that is open for reading.
    raise pickle.PicklingError(f"cannot pickle the open file {file.name!r}")


class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler that keeps file names, and notes the code objects that it met in `codes`."""

    def __init__(self, file: io.BytesIO, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None) -> None:
        self.codes = codes = list[types.CodeType]()

        # Not a method: a pickler that refers to itself keeps all that it pickled until the next garbage collection.
        def note_code(code: types.CodeType) -> tuple[Any, ...]:
            codes.append(code)
            return _reduce_code(code)

        # The C pickler looks for the table while it is initialised.
        own = {types.CodeType: note_code, io.TextIOWrapper: _refuse_file}
        self.dispatch_table: Any = ChainMap(own, cloudpickle.Pickler.dispatch_table)
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)


def dumps(obj: object) -> bytes:
    """Pickle by value where needed. Raises whatever pickling raises."""
    return dumps_with_sources(obj)[0]


def pickles(obj: object) -> bool:
    """Whether it can travel."""
    try:
        dumps(obj)
    except (Exception, SystemExit):
        return False
    return True


def dumps_with_sources(obj: object) -> tuple[bytes, Sources]:
    """Pickle, and the source lines of all code that travels in the pickle."""
    with io.BytesIO() as file:
        pickler = ByValuePickler(file)
        pickler.dump(obj)
        return file.getvalue(), _collect(pickler.codes)


def _collect(codes: list[types.CodeType]) -> Sources:
    sources: Sources = {}
    left = SOURCE_LIMIT_BYTES
    for code in codes:
        first = code.co_firstlineno
        last = max((line for _, _, line in code.co_lines() if line), default=first)
        lines = linecache.getlines(code.co_filename)[max(0, first - 1) : last]
        text = "".join(lines)
        if text and len(text) <= left:
            left -= len(text)
            sources.setdefault(code.co_filename, {})[max(1, first)] = text
    return sources


def show_sources(sources: Mapping[str, Mapping[int, str]]) -> None:
    """Let tracebacks in this process show these lines, whatever the file system holds under the name."""
    for filename, parts in sources.items():
        lines: list[str] = []
        for first, text in sorted(parts.items()):
            part = text.splitlines(keepends=True)
            lines.extend(["\n"] * (first - 1 + len(part) - len(lines)))
            lines[first - 1 : first - 1 + len(part)] = part
        # No modification time: linecache then never looks at the file.
        linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
