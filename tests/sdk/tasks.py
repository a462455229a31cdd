"""Functions that the tests run in pools. Light to import: workers do."""

from __future__ import annotations

import os
import time
from typing import Any

import fallow

app = fallow.App("tests")


class Odd(Exception):
    """Has an attribute that must come over."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"{self.number} is odd"


class Stubborn(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.sum = a + b


@app.function
def square(x: int) -> int:
    return x * x


@app.function
def add(a: Any, b: Any = 0) -> Any:
    return a + b


@app.function
def pid(_: object = None) -> int:
    return os.getpid()


@app.function
def only_even(x: int) -> int:
    if x % 2:
        raise Odd(x)
    return x


@app.function
def stubborn(x: int) -> int:
    raise Stubborn(x, x)


@app.function
def stays(file: str) -> None:
    with open(file, "w") as opened:
        opened.write(str(os.getpid()))
    time.sleep(600)


@app.function
def exits(x: int) -> int:
    if x == 7:
        os._exit(3)
    return x


@app.function
def exit_at(x: int, at: int) -> None:
    if x == at:
        os._exit(3)


@app.function(timeout=0.5)
def hangs(x: int) -> int:
    if x == 2:
        time.sleep(600)
    return x


@app.function
def makes_lambda(x: int) -> Any:
    return {"ok": x, "f": open(os.devnull)} if x == 1 else x


@app.function
def says(x: int) -> int:
    print("I am task", x)
    return x


@app.function
def sleeps(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.function
def size_of(data: Any) -> int:
    return len(data)


@app.function
def echo(x: Any) -> Any:
    return x


@app.function
def read_text(path: Any) -> tuple[str, str]:
    with open(path) as file:
        return os.path.basename(path), file.read()


@app.function
def sum_of_squares(n: int) -> int:
    return sum(square.map(range(n)))


@app.function
def fib(n: int) -> int:
    return n if n < 2 else fib.remote(n - 1) + fib.remote(n - 2)


@app.function
def nested_executor(n: int) -> int:
    with fallow.Executor() as executor:
        return sum(future.result() for future in [executor.submit(square.fn, i) for i in range(n)])


@app.function
def nested_spawn(n: int) -> int:
    return sum(handle.get() for handle in [square.spawn(i) for i in range(n)])


@app.function(retries=fallow.Retry(3, backoff_s=0.0, retry_on=Odd))
def flaky(path: str) -> int:
    """Raises Odd until it has run three times."""
    with open(path, "a") as file:
        file.write("x")
    count = os.path.getsize(path)
    if count < 3:
        raise Odd(count)
    return count


@app.function(retries=fallow.Retry(3, backoff_s=0.0, retry_on=KeyError))
def not_retried(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    raise ValueError("not worth it")


@app.cls
class Model:
    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.loads = 0

    @fallow.enter()
    def load(self) -> None:
        self.loads += 1

    @fallow.method
    def scale(self, x: int) -> tuple[int, int]:
        return self.factor * x, self.loads

    @fallow.method
    def shift(self, x: int) -> int:
        return self.factor + x
