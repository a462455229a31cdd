"""The one loader of NVIDIA's library: what it tells, and what it does about drivers that are old, broken or away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fallow.agent.devices import found
from fallow.agent.devices.nvml import Nvml
from fallow.model.lending import GpuSettings
from tests.agent.devices.drivers import GIB, Card, Driver, Process

Open = Callable[[], Nvml]
CARD = Card("GPU-a", free=20 * GIB, minor=3, heat=61, milliwatts=215_500, use=40)
OTHER = Card("GPU-b", "NVIDIA H100 80GB HBM3", 80 * GIB, 80 * GIB, minor=1)


def test_devices_are_told_with_driver_and_memory(driver: Driver, open_nvml: Open) -> None:
    driver.say([CARD, OTHER])
    nvml = open_nvml()
    assert [(d.model, d.memory_bytes, d.uuid, d.driver, d.vendor) for d in nvml.devices()] == [
        ("NVIDIA GeForce RTX 4090", 24 * GIB, "GPU-a", "570.86", "nvidia"),
        ("NVIDIA H100 80GB HBM3", 80 * GIB, "GPU-b", "570.86", "nvidia"),
    ]
    assert nvml.words == ""
    reading = nvml.readings()["GPU-a"]
    assert (reading.memory_free_bytes, reading.power_w, reading.temperature_c) == (20 * GIB, 215.5, 61.0)
    assert reading.utilisation == pytest.approx(0.4)
    assert [nvml.readings()["GPU-b"].temperature_c, nvml.readings()["GPU-b"].power_w] == [40.0, 50.0]


def test_what_others_take_leaves_out_our_own(driver: Driver, open_nvml: Open) -> None:
    driver.say([CARD, OTHER], [Process(0, 10, 2 * GIB, 30), Process(0, 11, GIB, 9), Process(0, 12, GIB, 5)])
    nvml = open_nvml()
    share, memory = nvml.gpu_use([10])["GPU-a"]
    assert share == pytest.approx(0.14)
    assert memory == 2 * GIB
    assert nvml.gpu_use([10, 11, 12]) == {"GPU-a": (0.0, 0), "GPU-b": (0.0, 0)}


def test_what_the_driver_does_not_tell_is_none_and_not_nothing(driver: Driver, open_nvml: Open) -> None:
    driver.say([CARD], [Process(0, 10, -1, -1), Process(0, 11, GIB, -1)])
    nvml = open_nvml()
    assert nvml.gpu_use([11])["GPU-a"] == (None, None)
    # None of ours is there: all of the device's use is theirs.
    assert nvml.gpu_use([])["GPU-a"] == (pytest.approx(0.4), None)


@pytest.mark.parametrize(("status", "words"), [(9, "Driver Not Loaded"), (18, "restart the machine"), (999, "Unknown")])
def test_a_broken_driver_is_said_in_words(driver: Driver, open_nvml: Open, status: int, words: str) -> None:
    driver.say([CARD], init=status)
    nvml = open_nvml()
    assert not nvml.works
    assert nvml.devices() == ()
    assert words in nvml.words
    assert nvml.gpu_use([]) == {}
    assert nvml.reading("GPU-a").temperature_c is None


def test_a_driver_that_hangs_holds_nobody_up_for_long(
    driver: Driver, open_nvml: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fallow.agent.devices.nvml.CALL_WAIT_S", 0.2)
    driver.say([CARD], [Process(0, 1, 1 << 30, 50)])
    nvml = open_nvml()
    assert nvml.gpu_use([]) == {"GPU-a": (0.5, 1 << 30)}
    driver.say([CARD], hangs=True)
    began = time.monotonic()
    for _ in range(20):
        assert nvml.gpu_use([]) == {"GPU-a": (None, None)}, "it may be anything"
        assert nvml.reading("GPU-a").temperature_c is None
    assert time.monotonic() - began < 3.0, "it is waited for once"
    assert "hangs" in nvml.words
    assert "hangs" in nvml.set_power_limit("GPU-a", 100.0)
    driver.say([CARD])
    while nvml.words:
        assert time.monotonic() - began < 30.0
        time.sleep(0.01)
    assert nvml.reading("GPU-a").temperature_c == 61.0


def test_a_driver_that_hangs_from_the_start_is_said_in_words(
    driver: Driver, open_nvml: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fallow.agent.devices.nvml.START_WAIT_S", 0.2)
    driver.say([CARD], hangs=True)
    nvml = open_nvml()
    assert not nvml.works
    assert nvml.devices() == ()
    assert "the NVIDIA driver hangs" in nvml.words
    nvml.close()
    driver.say([CARD])


def test_a_device_that_fell_off_the_bus_does_not_hide_the_others(driver: Driver, open_nvml: Open) -> None:
    driver.say([Card("LOST"), OTHER])
    nvml = open_nvml()
    assert [device.uuid for device in nvml.devices()] == ["GPU-b"]
    assert "GPU 0 does not answer" in nvml.words


def test_no_library_is_no_error(tmp_path: Path) -> None:
    nvml = Nvml(str(tmp_path / "missing.so"))
    assert nvml.devices() == ()
    assert not nvml.works
    assert nvml.gpu_use([1]) == {}
    assert nvml.processes("GPU-a") is None


def test_a_library_that_is_no_nvml_is_said_in_words(cuda_library: Path) -> None:
    nvml = Nvml(str(cuda_library))
    assert not nvml.works
    assert "does not answer" in nvml.words


def test_device_nodes_are_exactly_those_given(driver: Driver, open_nvml: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.say([CARD, OTHER])
    monkeypatch.setattr(found, "NVIDIA_ALWAYS", ("/dev/null", "/dev/no-such-node"))
    nvml = open_nvml()
    assert found.device_nodes(["GPU-a"], nvml) == ("/dev/nvidia3", "/dev/null")
    assert found.device_nodes(["GPU-b", "GPU-a"], nvml) == ("/dev/nvidia1", "/dev/nvidia3", "/dev/null")
    assert found.device_nodes([], nvml) == ()
    assert found.device_nodes(["GPU-unknown"], nvml) == ()


def test_the_owner_says_what_is_lent(driver: Driver, open_nvml: Open) -> None:
    driver.say([CARD, OTHER])
    devices = open_nvml().devices()
    assert found.lent(devices, GpuSettings()) == devices
    assert found.lent(devices, GpuSettings(lend=False)) == ()
    assert [device.uuid for device in found.lent(devices, GpuSettings(models=("h100",)))] == ["GPU-b"]


def test_a_power_limit_that_the_driver_refuses_is_said(driver: Driver, open_nvml: Open) -> None:
    driver.say([CARD])
    nvml = open_nvml()
    assert nvml.set_power_limit("GPU-a", 200.0) != ""
    assert nvml.set_power_limit("GPU-x", 200.0) == "no such device"
