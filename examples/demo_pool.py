"""A pool and its nodes as processes of this machine, each node with a home folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

START_LIMIT_S = 60.0


class DemoPool:
    """`fallow up` without a node of its own, and `fallow join` as often as asked for; all gone at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fallow-demo-"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = ""

    def __enter__(self) -> DemoPool:
        # A demo that is ended by others, or by the closing of its window, ends what it started too.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        try:
            self._start("pool", self.folder / "home", "up", "--no-agent", "--name", "demo")
            self.address = self._wait_for_address()
            os.environ["FALLOW_URL"] = self.address
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, name: str, home: Path, *arguments: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FALLOW_")}
        with open(self.folder / f"{name}.txt", "wb") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "fallow.cli.main", *arguments],
                env={**kept, "FALLOW_HOME": str(home), "DEMO_NODE": name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the demo, which then ends its pool in order.
                start_new_session=True,
            )

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self._processes["pool"].poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError):
                if " is up at " in self.said("pool"):
                    return str(json.loads((self.folder / "home" / "pool.json").read_text())["address"])
            time.sleep(0.05)
        raise RuntimeError(f"the pool did not start:\n{self.said('pool')}")

    def said(self, name: str) -> str:
        """What one of the processes printed."""
        return (self.folder / f"{name}.txt").read_text(errors="replace")

    def join(self, name: str) -> None:
        """Start one more node with one slot. It may take a moment until it works."""
        # All nodes are on this one machine: the others' work must not count as its owner's.
        settings = self.folder / name / "agent" / "node.toml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text('[owner]\nwatch = false\nbusy_cpu = "100 %"\nresume_cpu = "100 %"\n')
        self._start(name, self.folder / name, "join", self.address, "--name", name, "--slots", "1")

    def kill(self, name: str) -> None:
        """SIGKILL the node's agent, without a warning."""
        self._processes[name].kill()
        self._processes[name].wait()

    def close(self) -> None:
        """End the nodes, then the pool, and remove the folder."""
        for name in sorted(self._processes, key=lambda name: name == "pool"):
            process = self._processes.pop(name)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        os.environ.pop("FALLOW_URL", None)
        shutil.rmtree(self.folder, ignore_errors=True)
