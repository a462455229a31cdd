"""Dask's futures on one machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from bench import work
from bench.peers.base import LOST_AFTER_S, WORKERS, Outcome, Peer, chunks, settle_each
from bench.processes import free_port


class DaskPeer(Peer):
    name = "dask"
    title = "Dask"
    requirements = ("dask", "distributed", "numpy")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "map": {"tasks": 2_000},
        "map_tuned": {"tasks": 100_000},
        "memory": {"tasks": 5_000},
        "call": {"calls": 500},
        "submit": {"tasks": 3_000},
        "cold": {"repeat": 3},
        "arrays": {"tasks": 500},
        "broadcast": {"repeat": 1},
    }
    tuned = "chunked by hand: 100 tasks of many items"

    def start(self) -> None:
        import logging

        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        from distributed import Client, LocalCluster

        self.processes: list[subprocess.Popen[bytes]] = []
        self.cluster = LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        )
        self.client = Client(self.cluster)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        self.client.close(timeout=2)
        if self.cluster is not None:
            self.cluster.close(timeout=5)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for future in self.client.map(function, list(items), pure=False):
            yield future.result()

    def map_tuned(self, count: int) -> Iterator[Any]:
        parts = list(chunks(count, max(1, count // 100)))
        for future in self.client.map(work.noop_many, parts, pure=False):
            yield from future.result()

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self.client.submit(function, argument, pure=False).result()

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        found: list[Any] = self.client.gather([self.client.submit(function, item, pure=False) for item in items])
        return found

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        remote = self.client.scatter(array, broadcast=True)
        found: list[Any] = self.client.gather([self.client.submit(function, remote, pure=False) for _ in range(count)])
        return found

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        futures = self.client.map(function, list(items), pure=False)
        return settle_each(futures, lambda future: future.result(timeout=LOST_AFTER_S), lambda future: future.done())

    def start_for_control(self) -> None:
        from distributed import Client

        self.port = free_port()
        self.cluster = None
        address = f"tcp://127.0.0.1:{self.port}"
        self._start_scheduler()
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", str(WORKERS)]
        workers = subprocess.Popen([*command, "--nthreads", "1", "--no-dashboard"], stderr=subprocess.DEVNULL)
        self.processes.append(workers)
        self.client = Client(address, timeout=30)
        self.client.wait_for_workers(WORKERS, timeout=60)

    def _start_scheduler(self) -> None:
        self.processes = [*getattr(self, "processes", [])]
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(self.port)]
        self.scheduler = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--no-dashboard"], stderr=subprocess.DEVNULL
        )
        self.processes.append(self.scheduler)

    def control_process(self) -> tuple[int, Callable[[], None] | None]:
        return self.scheduler.pid, self._start_scheduler

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "from distributed import Client\n"
            "def square(x): return x * x\n"
            "if __name__ == '__main__':\n"
            "    client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)\n"
            "    for future in client.map(square, range(10)):\n"
            "        future.result()\n"
            "        print('first', flush=True)\n"
            "        break\n"
        )


PEER = DaskPeer
