"""GPUs are given to one worker at a time, the smallest that do."""

from __future__ import annotations

from fallow.agent.gpus import Gpus
from fallow.model.job import GpuSpec
from fallow.model.node import Device

SMALL = Device("gpu", "NVIDIA GeForce RTX 4090", 24 << 30, "GPU-small")
LARGE = Device("gpu", "NVIDIA H100 80GB", 80 << 30, "GPU-large")


def test_a_device_belongs_to_one_worker_until_it_is_released() -> None:
    gpus = Gpus((LARGE, SMALL))
    assert gpus.take("a", GpuSpec(1)) == (1,)
    assert gpus.take("a", GpuSpec(1)) == (1,)
    assert gpus.take("b", GpuSpec(1)) == (0,)
    assert gpus.take("c", GpuSpec(1)) is None
    gpus.release("b")
    assert gpus.take("c", GpuSpec(1)) == (0,)


def test_only_devices_that_fit_are_taken() -> None:
    gpus = Gpus((LARGE, SMALL))
    assert gpus.take("a", GpuSpec(1, min_memory_bytes=40 << 30)) == (0,)
    assert gpus.take("b", GpuSpec(1, models=("H100",))) is None
    assert gpus.take("c", GpuSpec(2)) is None
    assert gpus.take("d", GpuSpec(1, models=("h100", "4090"))) == (1,)


def test_a_worker_sees_its_devices_alone() -> None:
    gpus = Gpus((LARGE, SMALL))
    assert gpus.environment((0, 1))["CUDA_VISIBLE_DEVICES"] == "GPU-large,GPU-small"
    assert gpus.environment(())["CUDA_VISIBLE_DEVICES"] == ""
    assert Gpus((Device("gpu", "old", 1),)).environment((0,))["CUDA_VISIBLE_DEVICES"] == "0"
    assert Gpus(()).environment(()) == {}
