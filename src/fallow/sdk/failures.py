"""From what the pool says to the exceptions that a customer sees.

A task's own exception comes back as itself, with the remote traceback as its cause, as concurrent.futures does it.
"""

from __future__ import annotations

import ast
import contextlib
import pickle
import sys
from typing import TYPE_CHECKING, Any

from fallow.model.errors import (
    DetachedRefused,
    EnvironmentFailed,
    FallowError,
    JobCancelled,
    JobError,
    JobNotFound,
    JobTooLarge,
    NodeLost,
    PoolRefused,
    PythonMismatch,
    RemoteError,
    SettingError,
    TaskCancelled,
    TaskError,
    TaskOutOfMemory,
    TaskTimeout,
    UnserialisableResult,
    WorkerLost,
)
from fallow.wire.page import Failure, Unreadable

if TYPE_CHECKING:
    from fallow.wire.messages import FaultPage, Refused

_TASK_ERRORS: dict[str, type[TaskError]] = {
    "timeout": TaskTimeout,
    "memory": TaskOutOfMemory,
    "worker_lost": WorkerLost,
    "node_lost": NodeLost,
    "cancelled": TaskCancelled,
}

_REFUSALS: dict[str, type[FallowError]] = {
    "not_found": JobNotFound,
    "too_large": JobTooLarge,
    "embedded": DetachedRefused,
    "python": PythonMismatch,
    "invalid": SettingError,
    "ended": JobCancelled,
}

_ENDINGS: dict[str, type[JobError]] = {
    "environment": EnvironmentFailed,
    "python": PythonMismatch,
    "too_large": JobTooLarge,
}


class RemoteTraceback(Exception):
    """The traceback of the worker, as text; shown as the cause of the task's exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def refusal(refused: Refused) -> FallowError:
    """The exception for a request that was refused."""
    kind = _REFUSALS.get(refused.kind)
    return kind(refused.message) if kind else PoolRefused(refused.message, refused.kind)


def ending(state: str, reason: str, reason_kind: str, name: str) -> JobError | None:
    """The exception for a job that has ended, or None where it ended well."""
    if state == "failed":
        return _ENDINGS.get(reason_kind, JobError)(reason or f"the job {name} failed.")
    if state == "cancelled":
        return JobCancelled(f"the job {name} was cancelled{': ' + reason if reason else '.'}")
    return None


def task_exception(failure: Failure, index: int, name: str, plain: bool = False) -> BaseException:
    """The exception of task `index` (-1: a single call) of the function `name`. `plain`: a stranger may have written
    the failure, so that nothing of it is unpickled."""
    if plain:
        failure = _printable(failure)
    if failure.kind == "raised":
        error = _builtin(failure) if plain else _original(failure)
        if error is None:
            error = RemoteError(f"{failure.type_name}: {failure.message}", index, failure.traceback)
    elif failure.kind == "unserialisable":
        error = UnserialisableResult(failure.message, failure.type_name, index)
    else:
        error = _TASK_ERRORS.get(failure.kind, TaskError)(failure.message, index, failure.traceback)
    if failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    if index >= 0:
        error.add_note(f"In task {index} of {name}.")
    if isinstance(error, ModuleNotFoundError):
        error.add_note(f"The node lacks it: name its package in the environment of {name}, env=fallow.Env(pip=[...]).")
    return error


def item_exception(item: Any, index: int, name: str, plain: bool = False) -> BaseException | None:
    """What a caller gets in place of an item of a page of results; None where it is a result. See task_exception."""
    if type(item) is Failure:
        return task_exception(item, index, name, plain)
    return _unreadable(item.error, index, name) if type(item) is Unreadable else None


def _unreadable(error: BaseException, index: int, name: str) -> UnserialisableResult:
    where = f"the result of task {index}" if index >= 0 else "the result"
    made = UnserialisableResult(
        f"{where} of {name} has come, but cannot be unpickled here: {type(error).__name__}: {error}", where, index
    )
    made.__cause__ = error
    return made


def fault_exception(fault: FaultPage, name: str, *, single: bool = False) -> BaseException:
    """The exception of a task that failed from outside, such as one whose worker died."""
    index = -1 if single else fault.index
    kind = _TASK_ERRORS.get(fault.kind, TaskError)
    message = fault.message.replace(f"task {fault.index} ", "the task ", 1) if single else fault.message
    error = kind(message, index, fault.detail)
    if fault.detail:
        error.__cause__ = RemoteTraceback(fault.detail)
    if index >= 0:
        error.add_note(f"In task {index} of {name}.")
    return error


_BUILTIN = {
    kind.__name__: kind
    for kind in (
        ArithmeticError,
        AssertionError,
        AttributeError,
        BufferError,
        EOFError,
        FileExistsError,
        FileNotFoundError,
        FloatingPointError,
        ImportError,
        IndexError,
        KeyError,
        LookupError,
        MemoryError,
        ModuleNotFoundError,
        NameError,
        NotImplementedError,
        OSError,
        OverflowError,
        PermissionError,
        RecursionError,
        ReferenceError,
        RuntimeError,
        TimeoutError,
        TypeError,
        UnboundLocalError,
        ValueError,
        ZeroDivisionError,
    )
}
"""Exceptions that a stranger's failure may name; all others come as RemoteError. None of them ends a program, as
SystemExit would."""
_TEXT_LIMIT = 64 * 1024


def _builtin(failure: Failure) -> BaseException | None:
    kind = _BUILTIN.get(failure.type_name)
    if kind is None:
        return None
    message = failure.message
    if kind is KeyError and len(message) < 1000 and message[:1] in ("'", '"'):
        # Its str() is the repr() of the key.
        with contextlib.suppress(ValueError, SyntaxError):
            message = str(ast.literal_eval(message))
    return kind(message)


def _printable(failure: Failure) -> Failure:
    """Without bytes of an exception, and without what would steer a terminal."""
    from msgspec.structs import replace

    texts = {
        name: "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text[:_TEXT_LIMIT])
        for name in ("kind", "type_name", "message", "traceback")
        if isinstance(text := getattr(failure, name), str)
    }
    return replace(failure, exception=None, **texts)


def _original(failure: Failure) -> BaseException | None:
    if failure.exception is None:
        return None
    try:
        error: Any = pickle.loads(failure.exception)
    except (Exception, SystemExit):
        # A class that exists on the node alone, or that cannot be rebuilt from its arguments.
        return None
    if not isinstance(error, BaseException) or _steers(error):
        return None
    return error


def _steers(error: BaseException) -> bool:
    """Whether it ends or interrupts the process that raises it, and not the one that reads its result: a script would
    end without a word, or take it for a Ctrl-C, or for the end of its own generator or coroutine."""
    cancelled = sys.modules.get("asyncio.exceptions")
    kinds = (SystemExit, KeyboardInterrupt, GeneratorExit)
    return isinstance(error, (*kinds, cancelled.CancelledError) if cancelled else kinds)
