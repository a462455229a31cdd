"""multiprocessing.Pool."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from bench import work
from bench.peers.base import LOST_AFTER_S, WORKERS, Outcome, Peer, settle_each


class PoolPeer(Peer):
    name = "pool"
    title = "multiprocessing.Pool"
    requirements = ("numpy",)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "map": {"tasks": 300_000},
        "skew": {"repeat": 1},
    }
    tuned = "chunksize = tasks / 8"
    not_applicable: ClassVar[dict[str, str]] = {"control": "the script itself schedules: there is no control process"}

    def start(self) -> None:
        self.pool = multiprocessing.Pool(WORKERS)

    def stop(self) -> None:
        self.pool.terminate()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return self.pool.imap(function, items, chunksize=1)

    def map_tuned(self, count: int) -> Iterable[Any]:
        return self.pool.imap(work.noop, range(count), chunksize=max(1, count // 8))

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self.pool.apply(function, (argument,))

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [handle.get() for handle in [self.pool.apply_async(function, (item,)) for item in items]]

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        return self.pool.map(function, [array] * count, chunksize=1)

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        handles = [self.pool.apply_async(function, (item,)) for item in items]
        return settle_each(handles, lambda handle: handle.get(timeout=LOST_AFTER_S), lambda handle: handle.ready())

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "import multiprocessing\n"
            "def square(x): return x * x\n"
            "if __name__ == '__main__':\n"
            "    with multiprocessing.Pool(2) as pool:\n"
            "        for y in pool.imap(square, range(10)):\n"
            "            print('first', flush=True)\n"
            "            break\n"
        )


PEER = PoolPeer
