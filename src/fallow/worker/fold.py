"""Combining results of one order, for jobs with `reduce`: adjacent results become one, in the order of their tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fallow.wire.page import Failure
from fallow.worker.failures import make_failure
from fallow.worker.outbox import Piece


class Run:
    """The combined value of tasks [start, stop)."""

    __slots__ = ("start", "stop", "value")

    def __init__(self, start: int, stop: int, value: Any) -> None:
        self.start = start
        self.stop = stop
        self.value = value


class Fold:
    """`combine(earlier, later)` is associative. A task whose result cannot be combined fails, and splits the run."""

    def __init__(self, combine: Callable[[Any, Any], Any]) -> None:
        self._combine = combine
        self._runs: list[Run] = []
        self.failures: dict[int, Failure] = {}

    def add(self, pieces: list[Piece]) -> None:
        """Fold the results of these pieces."""
        for piece in pieces:
            for index, value in enumerate(piece.values, piece.start):
                failure = piece.failures.get(index)
                if failure is not None:
                    self.failures[index] = failure
                else:
                    self._add(index, value)

    def _add(self, index: int, value: Any) -> None:
        last = self._runs[-1] if self._runs else None
        if last is None or last.stop != index:
            self._runs.append(Run(index, index + 1, value))
            return
        try:
            last.value = self._combine(last.value, value)
        except BaseException as error:
            self.failures[index] = make_failure(error)
        else:
            last.stop = index + 1

    def finish(self) -> list[Run]:
        """The runs by index, those that have become adjacent (a retry filled the gap) combined."""
        runs: list[Run] = []
        for run in sorted(self._runs, key=lambda run: run.start):
            if runs and runs[-1].stop == run.start:
                try:
                    runs[-1].value = self._combine(runs[-1].value, run.value)
                except BaseException:  # keep them apart: whoever folds the partials meets the error
                    runs.append(run)
                else:
                    runs[-1].stop = run.stop
            else:
                runs.append(run)
        return runs
