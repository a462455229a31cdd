"""joblib's Parallel on a pool: large arrays wherever they sit, and what cannot be sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fallow.model import errors
from tests.pool import Pool

joblib = pytest.importorskip("joblib")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.usefixtures("connected")

LARGE = 200_000
"""Numbers of 8 bytes: more than what travels with its batch."""


class Frame:
    """Holds an array, as a data frame or a sparse matrix does."""

    def __init__(self, array: Any) -> None:
        self.array = array


def total(value: Any, n: int = 0) -> float:
    array = value.array if isinstance(value, Frame) else value
    return float(array.sum()) + n


def can_write(array: Any) -> bool:
    return bool(array.flags.writeable)


def lines(file: Any) -> list[str]:
    return list(file)


@pytest.fixture
def stored(connected: Pool, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is put into the pool as an object of its own."""
    from fallow.sdk import objects

    put, seen = objects.put, list[object]()

    def noted(value: Any) -> Any:
        seen.append(value)
        return put(value)

    monkeypatch.setattr(objects, "put", noted)
    return seen


def parallel(calls: Any, **options: Any) -> Any:
    return joblib.Parallel(n_jobs=2, backend="fallow", batch_size=1, **options)(calls)


def test_an_array_for_each_task(stored: list[object]) -> None:
    arrays = (np.full(LARGE, n, "f8") for n in range(20))
    assert parallel(joblib.delayed(total)(array) for array in arrays) == [float(n * LARGE) for n in range(20)]
    assert not stored  # each is used once, and is dropped with its batch


@pytest.mark.parametrize("kind", ["argument", "inside", "in a list", "view", "strided", "memmap", "fortran"])
def test_what_many_tasks_share_is_shipped_once(stored: list[object], tmp_path: Path, kind: str) -> None:
    table: Any = np.ones(LARGE)
    value: Any = table
    if kind == "inside":
        value = Frame(table)
    elif kind == "strided":
        value = np.ones(2 * LARGE)[::2]
    elif kind == "memmap":
        np.save(tmp_path / "table.npy", table)
        value = np.load(tmp_path / "table.npy", mmap_mode="r")
    elif kind == "fortran":
        value = np.asfortranarray(np.ones((LARGE // 4, 4)))
    for shift in (0, 1):  # between two calls an array may change
        table += shift
        if kind == "view":
            calls = [joblib.delayed(total)(table[:-1], n) for n in range(8)]
        elif kind == "in a list":
            calls = [joblib.delayed(np.sum)([table], axis=None) for _ in range(8)]
        else:
            calls = [joblib.delayed(total)(value, n) for n in range(8)]
        size = LARGE - (kind == "view")
        factor = 1 if kind in ("strided", "memmap", "fortran") else 1 + shift
        add = 0 if kind == "in a list" else 1
        assert parallel(calls) == [float(size * factor) + add * n for n in range(8)]
        assert len(stored) == 1 + shift


def test_arrays_can_be_written_as_with_other_backends() -> None:
    for size, expected in ((1000, True), (LARGE, False)):
        array = np.ones(size)
        assert parallel(joblib.delayed(can_write)(array) for _ in range(3)) == [expected] * 3


def test_what_cannot_be_sent_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with open(tmp_path / "file") as file:
        with pytest.raises(errors.UnserialisableInput, match=r"^argument 1 is an open file"):
            parallel([joblib.delayed(lines)(file)])
    with pytest.raises(errors.UnserialisableResult, match="the result"):
        parallel([joblib.delayed(open)(os.devnull)])
    assert parallel([joblib.delayed(abs)(-3)]) == [3]


def test_the_backend_is_known_to_parallel_itself() -> None:
    """Also where nothing has named it before."""
    code = (
        "import fallow, joblib\n"
        "print(joblib.Parallel(n_jobs=2, backend='fallow')(joblib.delayed(abs)(-n) for n in range(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[0, 1, 2]\n", done.stderr
