"""Errors that reach people, as a tree. Programmers' errors are not here: they crash.

FallowError
├── PoolError                   the pool as a whole
│   ├── PoolAddressError        an address that cannot be read
│   ├── PoolUnreachable         nobody answers there
│   ├── PoolRefused             wrong secret, overloaded, full disk: `kind` says which
│   └── PoolEnded               an embedded pool that ended under its script
├── JobError                    a job as a whole
│   ├── JobNotFound
│   ├── JobCancelled
│   ├── JobTooLarge             no node could ever run it
│   ├── EnvironmentFailed       the resolver's own words
│   ├── PythonMismatch          no node has the Python minor version
│   └── DetachedRefused         an embedded pool keeps no detached jobs
├── TaskError                   one task; `index` says which (-1: a single call)
│   ├── TaskTimeout
│   ├── TaskOutOfMemory
│   ├── WorkerLost              the worker died: `exit_cause` says how
│   ├── NodeLost
│   ├── TaskCancelled
│   └── RemoteError             an exception that could not be brought over as itself
├── UnserialisableError         `where` names the offending object and where it sits
│   ├── UnserialisableFunction
│   ├── UnserialisableInput
│   └── UnserialisableResult
├── SandboxUnavailable          a sandbox that this machine cannot give; `remedy` says what would help
└── SettingError                a setting, argument or file that is wrong
"""

from __future__ import annotations

import errno

NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""What a system says where a disk is full, for everybody or for one user."""


class FallowError(Exception):
    """Base of everything that Fallow raises on purpose."""


class PoolError(FallowError):
    pass


class PoolAddressError(PoolError, ValueError):
    pass


class PoolUnreachable(PoolError, ConnectionError):
    pass


class PoolRefused(PoolError):
    """`kind` as in wire.messages.Refused."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.kind)


class PoolEnded(PoolError):
    pass


class JobError(FallowError):
    pass


class JobNotFound(JobError, LookupError):
    pass


class JobCancelled(JobError):
    pass


class JobTooLarge(JobError):
    pass


class EnvironmentFailed(JobError):
    pass


class PythonMismatch(JobError):
    pass


class DetachedRefused(JobError):
    pass


class TaskError(FallowError):
    """`index` is the task's number in its job; `detail` the remote traceback or exit story."""

    def __init__(self, message: str, index: int = -1, detail: str = "") -> None:
        super().__init__(message)
        self.index = index
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.index, self.detail)


class TaskTimeout(TaskError, TimeoutError):
    pass


class TaskOutOfMemory(TaskError, MemoryError):
    pass


class WorkerLost(TaskError):
    @property
    def exit_cause(self) -> str:
        return str(self.args[0])


class NodeLost(TaskError):
    pass


class TaskCancelled(TaskError):
    pass


class RemoteError(TaskError):
    pass


class UnserialisableError(FallowError, TypeError):
    """`where` is a path to the object, such as "argument 2 of task 7 -> ['file']"."""

    def __init__(self, message: str, where: str = "", index: int = -1) -> None:
        super().__init__(message)
        self.where = where
        self.index = index

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.where, self.index)


class UnserialisableFunction(UnserialisableError):
    pass


class UnserialisableInput(UnserialisableError):
    pass


class UnserialisableResult(UnserialisableError):
    pass


class SandboxUnavailable(FallowError):
    """Never answered by falling back to less."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.remedy)


class SettingError(FallowError, ValueError):
    pass
