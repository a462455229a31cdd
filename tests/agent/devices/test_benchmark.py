"""The benchmark measures, says why where it cannot, and is kept for a week by hardware."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from fallow.agent.devices.benchmark import (
    FRESH_S,
    Scores,
    disk_rate,
    gpu_speed,
    keep_scores,
    kept_scores,
    measured,
    run_benchmark,
)
from fallow.model.ids import NodeId
from fallow.model.node import Device, NodeSpec
from tests.agent.devices.drivers import build_library
from tests.small_disk import small_disk_at

CARD = Device("gpu", "NVIDIA H100 80GB HBM3", 80 << 30, "GPU-a", driver="570")
SPEC = NodeSpec(NodeId("n"), "n", 2, 2, 1 << 33, 1 << 40, "linux", ("3.11",), "1")


def test_every_part_is_measured(tmp_path: Path) -> None:
    scores = run_benchmark(0.1, tmp_path)
    assert scores.speed > 0.001
    assert min(scores.hash_bytes_per_s, scores.memory_bytes_per_s, scores.disk_bytes_per_s) > 1e5
    assert scores.flops > 1e4
    assert list(tmp_path.iterdir()) == []
    assert disk_rate(tmp_path / "missing", 0.1) == 0.0


@pytest.fixture
def gpu(tmp_path: Path, cuda_library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "memory").write_bytes(bytes(8 << 20))
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    build_library("fake_cublas.c", libraries, "libcublas.so.13")
    monkeypatch.setenv("FAKE_CUDA", str(tmp_path / "memory"))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{cuda_library.parent}:{libraries}")
    return libraries


def test_a_gpu_is_measured_by_a_product_that_is_looked_at(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed, words = gpu_speed(CARD, size=64)
    assert words == ""
    assert speed > 0.001
    monkeypatch.setenv("FAKE_CUBLAS_LIES", "1")
    assert gpu_speed(CARD, size=64) == (0.0, "the GPU's product of matrices is wrong")
    assert "too little free memory" in gpu_speed(CARD, size=4096)[1]


def test_why_a_gpu_is_not_measured_is_said(gpu: Path) -> None:
    (gpu / "libcublas.so.13").unlink()
    assert "cuBLAS is not found" in gpu_speed(CARD, size=64)[1]
    assert "cuDeviceGet answered 101" in gpu_speed(replace(CARD, uuid="GPU-other"), size=64)[1]
    assert gpu_speed(replace(CARD, vendor="amd"))[1] != ""


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_small_disk_is_left_to_the_tasks(tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "small", 12) as folder:
        assert disk_rate(folder, 0.1) == 0.0
    with small_disk_at(tmp_path / "larger", 24) as folder:
        assert disk_rate(folder, 0.1) > 0


def test_scores_are_kept_for_a_week_and_for_this_hardware(tmp_path: Path) -> None:
    scores = Scores(1.5, 1.0, 2.0, 3.0, 4.0, {"GPU-a": 50_000.0})
    assert kept_scores(tmp_path, SPEC, 1000.0) is None
    keep_scores(tmp_path, SPEC, scores, 1000.0)
    assert kept_scores(tmp_path, SPEC, 1000.0 + FRESH_S - 1) == scores
    assert kept_scores(tmp_path, SPEC, 1000.0 + FRESH_S) is None
    assert kept_scores(tmp_path, SPEC, 999.0) is None, "a clock that was set back"
    assert kept_scores(tmp_path, replace(SPEC, devices=(CARD,)), 1001.0) is None
    (tmp_path / "benchmark.json").write_bytes(b"{")
    assert kept_scores(tmp_path, SPEC, 1001.0) is None


def test_it_runs_as_a_program_of_its_own_and_only_once(tmp_path: Path) -> None:
    first = asyncio.run(measured(tmp_path, SPEC, 0.1))
    assert first is not None
    assert first.speed > 0.001
    assert asyncio.run(measured(tmp_path, SPEC, 0.1)) == first
