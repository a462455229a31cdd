"""Fallow: one computer out of many idle ones.

    import fallow
    app = fallow.App("square")

    @app.function(timeout=60, retries=2)
    def square(x): return x * x

    for y in square.map(range(1_000_000)): ...

Names are imported when they are first used, so that `import fallow` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

# First of all, and light: Ctrl-C while the rest is loaded is answered in a line.
import_module("fallow.sdk.script_end").hook_errors()

from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from fallow.model import errors as errors
    from fallow.model.errors import (
        DetachedRefused,
        EnvironmentFailed,
        FallowError,
        JobCancelled,
        JobError,
        JobNotFound,
        JobTooLarge,
        NodeLost,
        PoolEnded,
        PoolError,
        PoolRefused,
        PoolUnreachable,
        PythonMismatch,
        RemoteError,
        SettingError,
        TaskCancelled,
        TaskError,
        TaskOutOfMemory,
        TaskTimeout,
        UnserialisableError,
        UnserialisableFunction,
        UnserialisableInput,
        UnserialisableResult,
        WorkerLost,
    )
    from fallow.sdk import checkpoint as checkpoint
    from fallow.sdk.app import App
    from fallow.sdk.checkpoint import preempted
    from fallow.sdk.cls import enter, exit, method
    from fallow.sdk.env import Env
    from fallow.sdk.executor import Executor
    from fallow.sdk.function import Function
    from fallow.sdk.handle import JobHandle, job, jobs, nodes
    from fallow.sdk.objects import File, Ref, put
    from fallow.sdk.options import Retry

__version__ = "0.1.0"

_ERRORS = (
    "DetachedRefused", "EnvironmentFailed", "FallowError", "JobCancelled", "JobError", "JobNotFound", "JobTooLarge",
    "NodeLost", "PoolEnded", "PoolError", "PoolRefused", "PoolUnreachable", "PythonMismatch", "RemoteError",
    "SettingError", "TaskCancelled", "TaskError", "TaskOutOfMemory", "TaskTimeout", "UnserialisableError",
    "UnserialisableFunction", "UnserialisableInput", "UnserialisableResult", "WorkerLost",
)  # fmt: skip

_HOMES = {
    "App": "fallow.sdk.app",
    "Env": "fallow.sdk.env",
    "Executor": "fallow.sdk.executor",
    "File": "fallow.sdk.objects",
    "Function": "fallow.sdk.function",
    "JobHandle": "fallow.sdk.handle",
    "Ref": "fallow.sdk.objects",
    "Retry": "fallow.sdk.options",
    "enter": "fallow.sdk.cls",
    "exit": "fallow.sdk.cls",
    "job": "fallow.sdk.handle",
    "jobs": "fallow.sdk.handle",
    "method": "fallow.sdk.cls",
    "nodes": "fallow.sdk.handle",
    "preempted": "fallow.sdk.checkpoint",
    "put": "fallow.sdk.objects",
    **dict.fromkeys(_ERRORS, "fallow.model.errors"),
}

_MODULES = {"errors": "fallow.model.errors", "checkpoint": "fallow.sdk.checkpoint"}

__all__ = [  # noqa: RUF022  (by kind, then by name)
    "App", "Env", "Executor", "File", "Function", "JobHandle", "Ref", "Retry", "checkpoint", "enter", "exit", "job",
    "jobs", "method", "nodes", "preempted", "put", "DetachedRefused", "EnvironmentFailed", "FallowError",
    "JobCancelled", "JobError", "JobNotFound", "JobTooLarge", "NodeLost", "PoolEnded", "PoolError", "PoolRefused",
    "PoolUnreachable", "PythonMismatch", "RemoteError", "SettingError", "TaskCancelled", "TaskError",
    "TaskOutOfMemory", "TaskTimeout", "UnserialisableError", "UnserialisableFunction", "UnserialisableInput",
    "UnserialisableResult", "WorkerLost",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fallow' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


# Needs nothing but the standard library, and imports joblib no sooner than somebody else does.
import_module("fallow.sdk.joblib_hook").install()
