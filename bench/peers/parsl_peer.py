"""Parsl with its high-throughput executor on one machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from bench import work
from bench.peers.base import WORKERS, Outcome, Peer, chunks, settle_each

_START = (
    "parsl.load(parsl.Config(executors=[parsl.HighThroughputExecutor(label='bench', address='127.0.0.1', "
    "max_workers_per_node={workers}, cores_per_worker=1e-6, encrypted=False, "
    "provider=parsl.providers.LocalProvider(init_blocks=1, max_blocks=1))]{more}))\n"
)


class ParslPeer(Peer):
    name = "parsl"
    title = "Parsl"
    requirements = ("parsl", "numpy")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "map": {"tasks": 2_000},
        "memory": {"tasks": 10_000},
        "submit": {"tasks": 4_000},
        "arrays": {"tasks": 300},
        "cold": {"repeat": 3},
        "broadcast": {"repeat": 1},
        "skew": {"repeat": 1},
    }
    tuned = "chunked by hand: 100 tasks of many items"
    not_applicable: ClassVar[dict[str, str]] = {"control": "its interchange cannot be started again by itself"}

    careful = "retries=1"

    def start(self) -> None:
        self._load(retries=0)

    def start_careful(self) -> None:
        self._load(retries=1)

    def _load(self, retries: int) -> None:
        import parsl

        self.parsl = parsl
        self.apps: dict[Any, Any] = {}
        provider = parsl.providers.LocalProvider(init_blocks=1, max_blocks=1)
        executor = parsl.HighThroughputExecutor(
            label="bench", address="127.0.0.1", max_workers_per_node=WORKERS, cores_per_worker=1e-6, encrypted=False,
            provider=provider, working_dir=os.getcwd(),
        )  # fmt: skip
        run_dir = os.path.join(os.getcwd(), "runinfo")
        parsl.load(parsl.Config(executors=[executor], run_dir=run_dir, usage_tracking=0, retries=retries))

    def stop(self) -> None:
        self.parsl.dfk().cleanup()

    def _app(self, function: Callable[[Any], Any]) -> Any:
        if function not in self.apps:
            self.apps[function] = self.parsl.python_app(function)
        return self.apps[function]

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        app = self._app(function)
        for future in [app(item) for item in items]:
            yield future.result()

    def map_tuned(self, count: int) -> Iterator[Any]:
        app = self._app(work.noop_many)
        for future in [app(part) for part in chunks(count, max(1, count // 100))]:
            yield from future.result()

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self._app(function)(argument).result()

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.map(function, items))

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        return list(self.map(function, [array] * count))

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        app = self._app(function)
        futures = [app(item) for item in items]
        # A minute: it takes half of one to see that a worker is gone.
        return settle_each(futures, lambda future: future.result(timeout=60), lambda future: future.done())

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "import parsl\n"
            + _START.format(workers=WORKERS, more="")
            + "@parsl.python_app\n"
            + "def square(x): return x * x\n"
            + "for future in [square(x) for x in range(10)]:\n"
            + "    future.result()\n"
            + "    print('first', flush=True)\n"
            + "    break\n"
            + "parsl.dfk().cleanup()\n"
        )


PEER = ParslPeer
