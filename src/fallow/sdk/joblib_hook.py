"""Registers the joblib backend when both fallow and joblib are there, without importing joblib for it."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

TARGET = "joblib"


class _Finder:
    """Lets the other finders find joblib, and adds the registration to its loading. Used once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """The real loader, and the registration after it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._inner.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        module.__loader__ = self._inner
        self._inner.exec_module(module)
        register_lazily()


def register_lazily() -> None:
    """Tell joblib the name; our module is imported when somebody uses it."""
    from joblib import register_parallel_backend

    def make(**options: Any) -> Any:
        from fallow.sdk.joblib_backend import FallowBackend

        return FallowBackend(**options)

    register_parallel_backend("fallow", make)


def install() -> None:
    """Called when fallow is imported."""
    if TARGET in sys.modules:
        try:
            register_lazily()
        except ImportError:
            pass  # joblib is being imported this very moment, by what imports fallow, or is too old
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
