"""From what the pool says to exceptions."""

from __future__ import annotations

import pickle

import pytest

from fallow.model import errors
from fallow.sdk.failures import RemoteTraceback, ending, fault_exception, refusal, task_exception
from fallow.wire.messages import FaultPage, Refused
from fallow.wire.page import Failure


def test_own_exceptions_come_back_as_themselves() -> None:
    failure = Failure("raised", "KeyError", "'x'", "Traceback ...\nKeyError: 'x'", pickle.dumps(KeyError("x")))
    error = task_exception(failure, 7, "f")
    assert type(error) is KeyError
    assert error.args == ("x",)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "Traceback" in str(error.__cause__)
    assert error.__notes__ == ["In task 7 of f."]


def test_a_module_that_the_node_lacks_comes_with_what_to_do() -> None:
    data = pickle.dumps(ModuleNotFoundError("No module named 'x'"))
    error = task_exception(Failure("raised", "ModuleNotFoundError", "No module named 'x'", "", data), -1, "f")
    assert any("fallow.Env(pip=" in note for note in error.__notes__)


@pytest.mark.parametrize("data", [None, b"nonsense", pickle.dumps("no exception")])
def test_exceptions_that_cannot_be_brought_over(data: bytes | None) -> None:
    error = task_exception(Failure("raised", "lib.Weird", "what", "Traceback ...", data), 3, "f")
    assert isinstance(error, errors.RemoteError)
    assert str(error) == "lib.Weird: what"
    assert (error.index, error.detail) == (3, "Traceback ...")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("timeout", errors.TaskTimeout),
        ("memory", errors.TaskOutOfMemory),
        ("worker_lost", errors.WorkerLost),
        ("node_lost", errors.NodeLost),
        ("cancelled", errors.TaskCancelled),
        ("something new", errors.TaskError),
    ],
)
def test_kinds(kind: str, expected: type[Exception]) -> None:
    for error in (
        task_exception(Failure(kind, "", "words"), 4, "f"),
        fault_exception(FaultPage(4, kind, "words", "more"), "f"),
    ):
        assert type(error) is expected
        assert str(error) == "words"
        assert error.index == 4
        assert pickle.loads(pickle.dumps(error)).index == 4
    assert isinstance(fault_exception(FaultPage(4, "timeout", "w"), "f"), TimeoutError)
    assert isinstance(fault_exception(FaultPage(4, "memory", "w"), "f"), MemoryError)


def test_refusals_and_endings() -> None:
    assert isinstance(refusal(Refused("not_found", "x")), errors.JobNotFound)
    assert isinstance(refusal(Refused("embedded", "x")), errors.DetachedRefused)
    full = refusal(Refused("store_full", "no room"))
    assert isinstance(full, errors.PoolRefused)
    assert full.kind == "store_full"
    assert ending("succeeded", "", "", "f") is None
    assert isinstance(ending("failed", "words", "environment", "f"), errors.EnvironmentFailed)
    assert isinstance(ending("failed", "words", "python", "f"), errors.PythonMismatch)
    assert isinstance(ending("cancelled", "by its owner", "cancelled", "f"), errors.JobCancelled)
