"""Arguments of calls as pages of inputs."""

from __future__ import annotations

import re
from typing import Any

from fallow.model.errors import UnserialisableInput
from fallow.sdk.reply import Sink
from fallow.wire.page import encode_inputs

_PLACE = re.compile(r"input -?\d+ -> \[[012]\] -> \[(?:(?P<number>\d+)|(?P<name>'\w+'))\]")
"""As wire.offender writes where in an item an argument sits."""


def encode_call(item: tuple[Any, ...]) -> list[Any]:
    """The page of one call, (args, kwargs) or (fn, args, kwargs). Raises UnserialisableInput, of its arguments."""
    try:
        return list(encode_inputs([item]))
    except UnserialisableInput as error:
        raise _as_single(error) from None


def encode_items(sinks: list[Sink], items: list[Any]) -> list[Any] | None:
    """One page of calls. Those that cannot be encoded fail, and are taken out of both lists; None: none is left."""
    while items:
        try:
            return list(encode_inputs(items))
        except UnserialisableInput as error:
            at = error.index if 0 <= error.index < len(items) else 0
            sinks.pop(at).set_exception(_as_single(error))
            items.pop(at)
        except BaseException as error:
            for sink in sinks:
                sink.set_exception(error)
            return None
    return None


def _as_single(error: UnserialisableInput) -> UnserialisableInput:
    """For a single call there are arguments, not numbered inputs. Items are (args, kwargs), or (fn, args, kwargs)."""
    found = _PLACE.match(error.where)
    if found is None:
        old, new = f"input {error.index}", "the call's arguments"
    else:
        number, name = found["number"], found["name"]
        old, new = found[0], f"argument {int(number) + 1}" if number else f"argument {name}"
    return UnserialisableInput(str(error).replace(old, new, 1), error.where.replace(old, new, 1), -1)
