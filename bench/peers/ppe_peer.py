"""concurrent.futures.ProcessPoolExecutor, and what has its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any, ClassVar

from bench import work
from bench.peers.base import WORKERS, Outcome, Peer


class ExecutorPeer(Peer):
    """Everything through the standard Executor interface."""

    tuned = "chunksize = tasks / 8"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "map": {"tasks": 50_000},
        "memory": {"tasks": 100_000},
    }
    not_applicable: ClassVar[dict[str, str]] = {"control": "the script itself schedules: there is no control process"}
    executor: Executor

    def stop(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return self.executor.map(function, items)

    def map_tuned(self, count: int) -> Iterable[Any]:
        return self.executor.map(work.noop, range(count), chunksize=max(1, count // 8))

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self.executor.submit(function, argument).result()

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [future.result() for future in [self.executor.submit(function, item) for item in items]]

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        return list(self.executor.map(function, [array] * count))

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        outcome = Outcome()
        for future in [self.executor.submit(function, item) for item in items]:
            outcome.collect(future.result)
        return outcome


class ProcessPoolPeer(ExecutorPeer):
    name = "ppe"
    title = "ProcessPoolExecutor"
    requirements = ("numpy",)

    def start(self) -> None:
        self.executor = ProcessPoolExecutor(WORKERS)

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "from concurrent.futures import ProcessPoolExecutor\n"
            "def square(x): return x * x\n"
            "if __name__ == '__main__':\n"
            "    with ProcessPoolExecutor(2) as executor:\n"
            "        for y in executor.map(square, range(10)):\n"
            "            print('first', flush=True)\n"
            "            break\n"
        )


PEER = ProcessPoolPeer
