"""Ray on one machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench import work
from bench.peers.base import WORKERS, Outcome, Peer, chunks


class RayPeer(Peer):
    name = "ray"
    title = "Ray"
    requirements = ("ray", "numpy")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "map": {"tasks": 6_000},
        "memory": {"tasks": 20_000},
        "submit": {"tasks": 7_000},
        "cold": {"repeat": 3},
    }
    tuned = "chunked by hand: 100 tasks of many items"

    def start(self) -> None:
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        import ray

        self.ray = ray
        self.remotes: dict[Any, Any] = {}
        ray.init(
            num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            configure_logging=False, object_store_memory=2 << 30,
        )  # fmt: skip

    def stop(self) -> None:
        self.ray.shutdown()

    def _remote(self, function: Callable[[Any], Any]) -> Any:
        if function not in self.remotes:
            self.remotes[function] = self.ray.remote(function)
        return self.remotes[function].remote

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        remote = self._remote(function)
        for ref in [remote(item) for item in items]:
            yield self.ray.get(ref)

    def map_tuned(self, count: int) -> Iterator[Any]:
        remote = self._remote(work.noop_many)
        for ref in [remote(part) for part in chunks(count, max(1, count // 100))]:
            yield from self.ray.get(ref)

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self.ray.get(self._remote(function)(argument))

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        remote = self._remote(function)
        found: list[Any] = self.ray.get([remote(item) for item in items])
        return found

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        remote, ref = self._remote(function), self.ray.put(array)
        found: list[Any] = self.ray.get([remote(ref) for _ in range(count)])
        return found

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        remote = self._remote(function)
        outcome = Outcome()
        for ref in [remote(item) for item in items]:
            outcome.collect(lambda ref=ref: self.ray.get(ref))  # type: ignore[misc]
        return outcome

    def control_process(self) -> tuple[int, Callable[[], None] | None]:
        mark = f"BENCH_RUN={os.environ['BENCH_RUN']}".encode()
        for folder in Path("/proc").iterdir():
            try:
                named = folder.name.isdigit() and b"gcs_server" in (folder / "cmdline").read_bytes().split(b"\0")[0]
                if named and mark in (folder / "environ").read_bytes().split(b"\0"):
                    return int(folder.name), None
            except OSError:
                continue
        raise RuntimeError("no gcs_server found")

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "import ray\n"
            "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
            "@ray.remote\n"
            "def square(x): return x * x\n"
            "for ref in [square.remote(x) for x in range(10)]:\n"
            "    ray.get(ref)\n"
            "    print('first', flush=True)\n"
            "    break\n"
        )


PEER = RayPeer
