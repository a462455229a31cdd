from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fallow.agent.devices.nvml import Nvml
from tests.agent.devices.drivers import Driver, build_library


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library("fake_nvml.c", tmp_path_factory.mktemp("nvml"), "libnvidia-ml.so.1")


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library("fake_cuda.c", tmp_path_factory.mktemp("cuda"), "libcuda.so.1")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "state"))
    return Driver(tmp_path / "state")


@pytest.fixture
def open_nvml(nvml_library: Path, driver: Driver) -> Iterator[Callable[[], Nvml]]:
    """Opens the real loader on the stand-in library."""
    opened: list[Nvml] = []

    def open_it() -> Nvml:
        opened.append(Nvml(str(nvml_library)))
        return opened[-1]

    yield open_it
    for nvml in opened:
        nvml.close()
