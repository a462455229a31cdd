"""Notebooks, and IPython in a terminal: progress that renews itself in its cell, and errors without frames of ours.

Imports nothing of IPython: it is there where this is used, since it runs the user's code.
"""

from __future__ import annotations

import html
import sys
from importlib import import_module
from types import TracebackType
from typing import Any


def shell() -> Any:
    """The shell of IPython that runs this process's code, or None."""
    ipython = sys.modules.get("IPython")
    get = getattr(ipython, "get_ipython", None)
    return get() if get is not None else None


def is_notebook() -> bool:
    """Whether what this process shows goes to a notebook, or to whatever else has a Jupyter kernel."""
    return hasattr(shell(), "kernel")


class Bar:
    """A progress bar in the cell whose context it is made in. From any thread with that context."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, name: str, done: int, total: int, story: str) -> None:
        """total: -1 while it is not known. `story` says it all in words, for where there are no bars."""
        text = f"{name}: {story}"
        amount = f' value="{done}" max="{max(total, 1)}"' if total >= 0 else ""
        bundle = {"text/plain": text, "text/html": f"<progress{amount}></progress> {html.escape(text)}"}
        if self._handle is None:
            display: Any = import_module("IPython.display").display
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def shorten_errors() -> None:
    """As script_end does it for scripts; nothing where the user has a handler of his own."""
    ipython = shell()
    if ipython is not None and not getattr(ipython, "custom_exceptions", True):
        ipython.set_custom_exc((Exception, KeyboardInterrupt), _show)


def _show(
    ipython: Any, kind: type[BaseException], error: BaseException, trace: TracebackType | None, tb_offset: Any = None
) -> None:
    from fallow.sdk.script_end import is_on_purpose, users_call, users_part

    if isinstance(error, KeyboardInterrupt):
        trace = users_call(trace)
    elif is_on_purpose(error):
        trace = users_part(trace)
    ipython.showtraceback((kind, error, trace), tb_offset=tb_offset, running_compiled_code=True)
