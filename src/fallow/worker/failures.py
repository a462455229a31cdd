"""Failures as they travel: the exception itself where it can, and always its traceback as text."""

from __future__ import annotations

import os
import pickle
import traceback
from types import TracebackType

import fallow
from fallow.wire.code import dumps, rebuild_exception
from fallow.wire.page import Failure

TEXT_LIMIT = 16 * 1024
"""Characters of a traceback that travel."""
EXCEPTION_LIMIT_BYTES = 64 * 1024

_OWN = os.path.dirname(os.path.abspath(fallow.__file__)) + os.sep
_CALLS = tuple(os.path.join(_OWN, "sdk", name) for name in ("shipped.py", "joblib_packing.py"))
"""Where customers' functions are called, and nothing of ours goes wrong."""
_WORKER = (*(os.path.join(_OWN, part) + os.sep for part in ("worker", "wire")), *_CALLS)
_ASYNCIO = os.path.join(os.path.dirname(os.__file__), "asyncio") + os.sep


def make_failure(error: BaseException) -> Failure:
    """Describe an exception that a task raised. The exception loses its traceback, so that frames are freed."""
    text = traceback_text(error)
    error.__traceback__ = None
    return Failure("raised", type_name(error), message_of(error), text, _portable(error))


def type_name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def message_of(error: BaseException) -> str:
    """str() of the exception, bounded; its own failure is not ours."""
    try:
        return _cut(str(error))
    except Exception as second:
        return f"<str() of the exception raised {type(second).__name__}>"


def traceback_text(error: BaseException) -> str:
    """The traceback without our own frames at its top, with causes and notes, bounded."""
    try:
        return _cut("".join(traceback.format_exception(type(error), error, _skip_own(error.__traceback__))))
    except Exception as second:
        return f"{type(error).__name__} (its traceback could not be shown: {type(second).__name__})\n"


def _skip_own(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and tb.tb_next is not None and _file(tb).startswith(_WORKER):
        tb = tb.tb_next
        if _file(tb).startswith(_ASYNCIO):
            tb = _skip_asyncio(tb)
    return None if tb is not None and _file(tb).startswith(_CALLS) else tb


def _skip_asyncio(tb: TracebackType) -> TracebackType:
    """What runs a coroutine function, where there is anything below it."""
    below: TracebackType | None = tb
    while below is not None and _file(below).startswith(_ASYNCIO):
        below = below.tb_next
    return below or tb


def _file(tb: TracebackType) -> str:
    return tb.tb_frame.f_code.co_filename


def _cut(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def _portable(error: BaseException) -> bytes | None:
    """The exception's pickle, if it is small and comes back as what it is."""
    for shape in (error, _WithoutInit(error)):
        try:
            data = dumps(shape)
            if len(data) <= EXCEPTION_LIMIT_BYTES and type(pickle.loads(data)) is type(error):
                return data
        except Exception:
            continue
    return None


class _WithoutInit:
    """Pickles as the exception: many have an __init__ whose arguments pickle does not know."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[object, ...]:
        return rebuild_exception, (type(self.error), self.error.args, self.error.__dict__)
