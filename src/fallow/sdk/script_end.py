"""How a script looks that ends because of Ctrl-C or of an error of ours: a line, or its own frames alone."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from types import TracebackType

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_FUTURES = os.path.join(os.path.dirname(os.__file__), "concurrent", "futures") + os.sep

is_interrupted = False
"""Ctrl-C ends this process: nothing is waited for any more."""
_by_exception = False
"""It was the script's own KeyboardInterrupt, which nobody caught."""
_cancelled: Callable[[], list[str] | None] | None = None


def hook_errors() -> None:
    """Show errors that end the script without our own frames, unless somebody else shows them."""
    if "IPython" in sys.modules:
        from fallow.sdk.notebook import shorten_errors

        shorten_errors()
    if sys.excepthook is sys.__excepthook__ and not hasattr(sys, "ps1"):
        sys.excepthook = _excepthook


def say_cancelled_by(names: Callable[[], list[str] | None]) -> None:
    """`names`: of the jobs that an interrupt cancels; None where there is no pool."""
    global _cancelled
    _cancelled = names


def interrupted() -> bool:
    """This process ends because of Ctrl-C: what is attached is cancelled, nothing is waited for. Says so; False where
    there is no pool to say it of."""
    global is_interrupted
    is_interrupted = True
    names = _cancelled() if _cancelled is not None else None
    if names is None:
        return False
    say(f"interrupted{'; cancelled ' + ', '.join(names[:5]) if names else ''}.")
    return True


def keep_exit_code() -> None:
    """Last of all: whoever started the script sees that Ctrl-C ended it (130 in a shell). Python forgets that as soon
    as anything is evaluated from text afterwards, as each named tuple is that an import brings; and is told so anew."""
    if _by_exception:
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    is_ctrl_c = issubclass(kind, KeyboardInterrupt) and not hasattr(sys, "ps1")
    if is_ctrl_c and _said_interrupted(trace):
        return
    if is_on_purpose(error):
        trace = users_part(trace)
        error = error.with_traceback(trace)
    sys.__excepthook__(kind, error, trace)


def is_on_purpose(error: BaseException) -> bool:
    """Whether we raised it to be read: where in our code says nothing to whoever does."""
    from fallow.model.errors import FallowError
    from fallow.sdk.failures import RemoteTraceback

    return isinstance(error, FallowError) or isinstance(error.__cause__, RemoteTraceback)


def _said_interrupted(trace: TracebackType | None) -> bool:
    global _by_exception
    _by_exception = True
    with contextlib.suppress(KeyboardInterrupt):  # pressed twice
        if interrupted():
            return True
        if not _is_inside(trace):
            return False
        say("interrupted.")  # while the first of our modules were loaded
    return True


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of this package and of futures; as it is where there are no others."""
    return _made_of([part for part in _parts(trace) if not _file(part).startswith((_OURS, _FUTURES))]) or trace


def users_call(trace: TracebackType | None) -> TracebackType | None:
    """The traceback as far as the first call of this package; as it is where there is none."""
    return _made_of(list(itertools.takewhile(lambda part: not _file(part).startswith(_OURS), _parts(trace)))) or trace


def _is_inside(trace: TracebackType | None) -> bool:
    return any(_file(part).startswith(_OURS) for part in _parts(trace))


def _parts(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _made_of(parts: list[TracebackType]) -> TracebackType | None:
    made: TracebackType | None = None
    for part in reversed(parts):
        made = TracebackType(made, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return made


def _file(part: TracebackType) -> str:
    return part.tb_frame.f_code.co_filename


def say(text: str) -> None:
    """One line to whoever runs the script."""
    with contextlib.suppress(Exception):
        print(f"fallow: {text}", file=sys.stderr, flush=True)
