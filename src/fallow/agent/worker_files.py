"""What a worker and its agent share: a map of memory, and files."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING

from fallow.worker import orders

if TYPE_CHECKING:
    from fallow.agent.confined import Confined


class WorkerMap:
    """The shared map (see worker.orders); `descriptor` is passed on and then closed by whoever made this."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.descriptor = os.memfd_create("fallow-worker", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, orders.MAP_BYTES)
        self._map = mmap.mmap(self.descriptor, orders.MAP_BYTES)
        self.words = memoryview(self._map).cast("q")
        self.words[orders.INDEX] = self.words[orders.REACH] = self.words[orders.ENCODING] = -1


class WorkerFiles:
    """Files of one worker, as the host and as it names them. `confined`: its sandbox; None: both see the same."""

    def __init__(self, confined: Confined | None, scratch: str, serial: int) -> None:
        self._confined = confined
        self._scratch = scratch
        self._serial = serial
        self._shown: list[str] = []

    def show(self, paths: dict[int, str]) -> dict[int, str]:
        """Let the worker see these; returns its names for them. Where one cannot be shown the worker says so of its
        tasks."""
        if self._confined is None:
            return paths
        shown: dict[int, str] = {}
        for start, path in paths.items():
            name = f"page-{self._serial}-{start}"
            self._shown.append(name)
            try:
                self._confined.withdraw(name)
                shown[start] = self._confined.expose(path, name)
            except OSError:
                shown[start] = f"/inputs/{name}"
        return shown

    def hide(self) -> None:
        """Nothing of what was shown is needed any more."""
        if self._confined is not None:
            for name in self._shown:
                self._confined.withdraw(name)
            self._shown.clear()

    def on_host(self, path: str) -> str:
        """Where a result of the worker lies. (Doubts have seen to it that it is in the scratch folder.)"""
        return path if self._confined is None else self._confined.result_path(path) or ""

    def drop(self, path: str) -> None:
        """Nobody needs this result. (In a sandbox it stays until the worker is gone.)"""
        if self._confined is None:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def remove(self) -> None:
        """The worker is gone: so is its folder."""
        self.hide()
        name = f"worker-{self._serial}"
        if self._confined is None:
            shutil.rmtree(os.path.join(self._scratch, name), ignore_errors=True)
        else:
            self._confined.remove(name)
