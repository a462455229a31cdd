"""Has PyTorch keep to the worker's part of a GPU, as soon as a task imports it.

Its allocator takes the limit from a call alone: the variable that later versions read makes earlier ones fail.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

VARIABLE = "FALLOW_GPU_SHARE"


def keep_to_share() -> None:
    """For a worker with a part of a device: limit PyTorch when it is imported. Nothing for all others."""
    share = os.environ.get(VARIABLE)
    if share and "torch" not in sys.modules:
        sys.meta_path.insert(0, _TorchFinder(float(share)))


class _TorchFinder(importlib.abc.MetaPathFinder):
    def __init__(self, share: float) -> None:
        self._share = share

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            spec.loader = _TorchLoader(spec.loader, self._share)
        return spec


class _TorchLoader(importlib.abc.Loader):
    """PyTorch's own loader, and then the limit."""

    def __init__(self, loader: Any, share: float) -> None:
        self._loader = loader
        self._share = share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # A build without CUDA has no such limit; the agent's watch on the memory stays.
        with contextlib.suppress(Exception):
            # Put off until CUDA is used: a context made at once would cost memory, and break what forks later.
            module.cuda._lazy_call(lambda: module.cuda.set_per_process_memory_fraction(self._share, 0))
