"""joblib.Parallel with its default back end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from bench import work
from bench.peers.base import WORKERS, Outcome, Peer, one_line


class JoblibPeer(Peer):
    name = "joblib"
    title = "joblib"
    requirements = ("joblib", "numpy")
    tuned = "batch_size = tasks / 8"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "map": {"tasks": 300_000},
        "call": {"calls": 500},
        "skew": {"repeat": 1},
    }
    not_applicable: ClassVar[dict[str, str]] = {
        "submit": "joblib has no submission of single tasks",
        "control": "the script itself schedules: there is no control process",
    }

    def start(self) -> None:
        from joblib import Parallel, delayed

        self.delayed = delayed
        self.parallel = Parallel(n_jobs=WORKERS, return_as="generator")
        self.parallel.__enter__()
        self.single = Parallel(n_jobs=WORKERS)
        self.single.__enter__()

    def stop(self) -> None:
        self.single.__exit__(None, None, None)
        self.parallel.__exit__(None, None, None)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        wrapped = self.delayed(function)
        results: Iterable[Any] = self.parallel(wrapped(item) for item in items)
        return results

    def map_tuned(self, count: int) -> Iterable[Any]:
        from joblib import Parallel

        wrapped = self.delayed(work.noop)
        size = max(1, count // 8)
        results: Iterable[Any] = Parallel(n_jobs=WORKERS, batch_size=size, pre_dispatch="all")(
            wrapped(x) for x in range(count)
        )
        return results

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self.single([self.delayed(function)(argument)])[0]

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        return list(self.map(function, [array] * count))

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        outcome = Outcome()
        try:
            for value in self.map(function, items):
                outcome.values.append(value)
        except Exception as error:
            outcome.errors.append(one_line(error))
        return outcome

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "from joblib import Parallel, delayed\n"
            "def square(x): return x * x\n"
            "if __name__ == '__main__':\n"
            "    for y in Parallel(n_jobs=2, return_as='generator')(delayed(square)(x) for x in range(10)):\n"
            "        print('first', flush=True)\n"
            "        break\n"
        )


PEER = JoblibPeer
