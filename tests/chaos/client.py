"""One customer of the pool under test: submits one kind of work again and again, and checks every value.

    python -m tests.chaos.client KIND SEED OUT STOP

Writes a JSON line to OUT for each request and job: what, when it began, seconds, and what was wrong. Ends when the
file STOP is there and what it has begun is done.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fallow

app = fallow.App("chaos")
machines_time: Callable[[], float] = getattr(time, "machines_time", time.time)
"""This process' own clock may be wrong (see clock/sitecustomize.py)."""


@app.function()
def work(item: tuple[int, float]) -> int:
    """`item`: (number, seconds to take)."""
    import time

    if item[1]:
        time.sleep(item[1])
    return item[0] * 3 + 1


@app.function()
def square(number: int) -> int:
    return number * number


@app.function()
def turn(data: bytes) -> bytes:
    return data[::-1]


@app.function()
def picky(number: int) -> int:
    if number % 7 == 3:
        raise ValueError(f"{number} is not liked")
    return number + 1


class Wrong(Exception):
    """A result is missing, twice there, or another than it should be."""


class Customer:
    def __init__(self, seed: int, out: Path, stop: Path) -> None:
        self.random = random.Random(seed)
        self.stop = stop
        self._out = out.open("a", buffering=1)

    @property
    def goes_on(self) -> bool:
        return not self.stop.exists()

    def note(self, what: str, began: float, seconds: float, wrong: str = "", job: str = "") -> None:
        line = {"what": what, "began": began, "seconds": seconds, "wrong": wrong, "job": job}
        self._out.write(json.dumps(line) + "\n")

    def timed(self, what: str, run: Callable[[], Any]) -> Any:
        """Run, note how long it took, and pass on what it returned."""
        began, start = machines_time(), time.monotonic()
        try:
            value = run()
        except Exception as error:
            self.note(what, began, time.monotonic() - start, f"{type(error).__name__}: {error}"[:2000])
            raise
        self.note(what, began, time.monotonic() - start)
        return value

    def job(self, what: str, run: Callable[[], str]) -> None:
        """A whole job; `run` returns its id."""
        began, start = machines_time(), time.monotonic()
        wrong, job = "", ""
        try:
            job = run()
        except Exception as error:
            import traceback

            wrong = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"[:4000]
        self.note(f"job:{what}", began, time.monotonic() - start, wrong, job)

    # ------------------------------------------------------------ kinds

    def calls(self) -> None:
        while self.goes_on:
            number = self.random.randrange(1_000_000)

            def call(number: int = number) -> None:
                value = square.remote(number)
                if value != number * number:
                    raise Wrong(f"square({number}) is {value}")

            try:
                self.timed("call", call)
            except Exception:
                time.sleep(0.2)
            time.sleep(0.05)

    def short(self) -> None:
        while self.goes_on:
            first = self.random.randrange(1_000_000)
            inputs = [(first + number, 0.0) for number in range(self.random.choice((1, 50, 3000)))]
            self.job("short", lambda inputs=inputs: self._in_order(work, inputs, lambda x: x[0] * 3 + 1))
            time.sleep(0.1)

    def long(self) -> None:
        while self.goes_on:
            inputs = [(number, self.random.uniform(0.2, 1.2)) for number in range(8)]
            self.job("long", lambda inputs=inputs: self._in_order(work, inputs, lambda x: x[0] * 3 + 1))

    def large(self) -> None:
        # Some contents come again and again, from several customers: one blob that several jobs need.
        common = [bytes([number]) * 400_000 for number in range(4)]
        while self.goes_on:
            own = [hashlib.sha256(self.random.randbytes(8)).digest() * 15_000 for _ in range(4)]
            inputs = self.random.sample(common + own, 8)
            self.job("large", lambda inputs=inputs: self._in_order(turn, inputs, lambda x: x[::-1]))
            time.sleep(0.3)

    def failing(self) -> None:
        while self.goes_on:
            self.job("failing", self._failing)
            time.sleep(0.3)

    def _failing(self) -> str:
        first = self.random.randrange(1000)
        found = list(picky.map(range(first, first + 100), return_exceptions=True))
        if len(found) != 100:
            raise Wrong(f"{len(found)} results of 100")
        for number, value in enumerate(found, first):
            if number % 7 == 3:
                if not isinstance(value, ValueError) or str(number) not in str(value):
                    raise Wrong(f"picky({number}) is {value!r}")
            elif value != number + 1:
                raise Wrong(f"picky({number}) is {value!r}")
        return ""

    def detached(self) -> None:
        while self.goes_on:
            self.job("detached", self._detached)
            time.sleep(0.3)

    def _detached(self) -> str:
        first, count = self.random.randrange(1000), self.random.choice((5, 200))
        inputs = [(first + number, 0.05 if count == 5 else 0.0) for number in range(count)]
        handle = self.timed("submit", lambda: work.map(inputs, detached=True))
        again = fallow.job(handle.id)
        self.timed("status", again.status)
        self._check(iter(again.results()), inputs, lambda x: x[0] * 3 + 1)
        counts = again.status().counts
        if counts.done != count or counts.failed:
            raise Wrong(f"{handle.id} counts {counts} of {count}")
        return str(handle.id)

    def _in_order(self, function: Any, inputs: list[Any], expected: Callable[[Any], Any]) -> str:
        self._check(iter(function.map(inputs)), inputs, expected)
        return ""

    @staticmethod
    def _check(found: Iterator[Any], inputs: list[Any], expected: Callable[[Any], Any]) -> None:
        number = 0
        for number, value in enumerate(found, 1):
            if number > len(inputs):
                raise Wrong(f"more than {len(inputs)} results")
            if value != expected(inputs[number - 1]):
                raise Wrong(f"result {number - 1} is {str(value)[:100]}")
        if number != len(inputs):
            raise Wrong(f"{number} results of {len(inputs)}")


KINDS = ("calls", "short", "long", "large", "failing", "detached")


def main() -> None:
    kind, seed, out, stop = sys.argv[1:]
    customer = Customer(int(seed), Path(out), Path(stop))
    getattr(customer, kind)()


if __name__ == "__main__":
    main()
