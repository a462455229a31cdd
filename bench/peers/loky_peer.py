"""loky's reusable executor."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.peers.base import WORKERS
from bench.peers.ppe_peer import ExecutorPeer


class LokyPeer(ExecutorPeer):
    name = "loky"
    title = "loky"
    requirements = ("loky", "numpy")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {**ExecutorPeer.sizes, "skew": {"repeat": 1}}

    def start(self) -> None:
        import loky

        self.executor = loky.get_reusable_executor(max_workers=WORKERS, timeout=300)

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "from loky import get_reusable_executor\n"
            "def square(x): return x * x\n"
            "if __name__ == '__main__':\n"
            "    executor = get_reusable_executor(max_workers=2)\n"
            "    for y in executor.map(square, range(10)):\n"
            "        print('first', flush=True)\n"
            "        break\n"
        )


PEER = LokyPeer
