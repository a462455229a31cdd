"""Fallow itself: a pool of `fallow up` with its store on disk, used through the public SDK alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from bench.peers.base import WORKERS, Outcome, Peer, one_line

START_LIMIT_S = 60.0


class FallowPeer(Peer):
    name = "fallow"
    title = "Fallow"
    requirements = (".", "numpy")
    not_applicable: ClassVar[dict[str, str]] = {"map_tuned": "there is nothing to set: the default is the best"}

    def start(self) -> None:
        home = Path(os.environ["FALLOW_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        self.up = subprocess.Popen(
            [sys.executable, "-m", "fallow.cli.main", "up", "--slots", str(WORKERS)],
            stdout=subprocess.DEVNULL, stderr=sys.stderr, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT_S
        while not (home / "pool.json").exists():
            if self.up.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("`fallow up` did not start; see its words above")
            time.sleep(0.02)
        import fallow

        self.fallow = fallow
        self.app = fallow.App("bench")
        self.functions: dict[Any, Any] = {}

    def stop(self) -> None:
        self.up.send_signal(signal.SIGTERM)
        try:
            self.up.wait(20)
        except subprocess.TimeoutExpired:
            self.up.kill()

    def _function(self, function: Callable[[Any], Any]) -> Any:
        if function not in self.functions:
            self.functions[function] = self.app.function()(function)
        return self.functions[function]

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        results: Iterable[Any] = self._function(function).map(items)
        return results

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self._function(function).remote(argument)

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        with self.fallow.Executor(max_workers=WORKERS) as executor:
            return [future.result() for future in [executor.submit(function, item) for item in items]]

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        shared = self.fallow.put(array)
        return list(self._function(function).map([shared] * count))

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        outcome = Outcome()
        for value in self._function(function).map(items, return_exceptions=True):
            if isinstance(value, BaseException):
                outcome.errors.append(one_line(value))
            else:
                outcome.values.append(value)
        return outcome

    def control_process(self) -> tuple[int, Callable[[], None] | None]:
        """The coordinator: the child of `fallow up` that writes coordinator.log. It comes back by itself."""
        up = json.loads((Path(os.environ["FALLOW_HOME"]) / "pool.json").read_text())["pid"]
        for pid in Path(f"/proc/{up}/task/{up}/children").read_text().split():
            if os.readlink(f"/proc/{pid}/fd/2").endswith("coordinator.log"):
                return int(pid), None
        raise RuntimeError("no coordinator found among the children of `fallow up`")

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "import fallow\n"
            "app = fallow.App('square')\n"
            "@app.function()\n"
            "def square(x): return x * x\n"
            "for y in square.map(range(10)):\n"
            "    print('first', flush=True)\n"
            "    break\n"
        )


PEER = FallowPeer
