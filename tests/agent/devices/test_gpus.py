"""The node's devices at work: the smallest that do are given, tenants keep to their parts, and none inherits memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fallow.agent.devices.found import late_devices
from fallow.agent.devices.gpus import Gpus, Tenant
from fallow.agent.devices.nvml import Nvml
from fallow.model.job import GpuSpec
from fallow.model.lending import GpuSettings
from fallow.model.node import Device
from tests.agent.devices.drivers import GIB, Card, Driver, Process

SMALL = Device("gpu", "NVIDIA GeForce RTX 4090", 24 << 30, "GPU-small")
LARGE = Device("gpu", "NVIDIA H100 80GB", 80 << 30, "GPU-large")
AMD = Device("gpu", "AMD Instinct MI300X", 192 << 30, "GPU-6b1c", vendor="amd")
NONE = Path("/no-such-library.so")


def bare(devices: tuple[Device, ...], shares: bool = True) -> Gpus:
    """Without any driver."""
    nvml = Nvml(str(NONE))
    return Gpus(devices, shares, lambda: nvml)


def test_the_smallest_that_do_are_given_and_no_device_twice() -> None:
    gpus = bare((LARGE, SMALL))
    assert gpus.take("a", GpuSpec(1)) == (1,)
    assert gpus.take("a", GpuSpec(1)) == (1,)
    assert gpus.take("b", GpuSpec(1)) == (0,)
    assert gpus.take("c", GpuSpec(1)) is None
    gpus.release("b")
    assert gpus.take("c", GpuSpec(1)) == (0,)
    assert gpus.uuids("c") == ("GPU-large",)


def test_models_and_memory_are_heeded() -> None:
    gpus = bare((LARGE, SMALL))
    assert gpus.take("a", GpuSpec(1, min_memory_bytes=40 << 30)) == (0,)
    assert gpus.take("b", GpuSpec(1, models=("H100",))) is None
    assert gpus.take("c", GpuSpec(2)) is None
    assert gpus.take("d", GpuSpec(1, models=("h100", "4090"))) == (1,)


def test_a_worker_sees_its_own_devices_only() -> None:
    gpus = bare((LARGE, SMALL))
    assert gpus.environment((0, 1))["CUDA_VISIBLE_DEVICES"] == "GPU-large,GPU-small"
    assert gpus.environment(())["CUDA_VISIBLE_DEVICES"] == ""
    assert bare((Device("gpu", "old", 1),)).environment((0,))["CUDA_VISIBLE_DEVICES"] == "0"
    assert bare(()).environment(()) == {}


def test_amd_devices_have_their_own_variables() -> None:
    gpus = bare((LARGE, AMD))
    seen = gpus.environment((1,))
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["ROCR_VISIBLE_DEVICES"], seen["HIP_VISIBLE_DEVICES"]) == (
        "",
        "GPU-6b1c",
        "0",
    )
    hidden = gpus.environment((0,))
    assert (hidden["ROCR_VISIBLE_DEVICES"], hidden["HIP_VISIBLE_DEVICES"]) == ("-1", "-1")


PROFILER = """#!/bin/sh
cat <<END
{"SPDisplaysDataType": [
  {"sppci_model": "Apple M3 Max", "spdisplays_vendor": "sppci_vendor_Apple"},
  {"sppci_model": "AMD Radeon Pro", "spdisplays_vendor": "sppci_vendor_amd"}]}
END
"""


async def test_apples_gpu_is_found_late_and_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "system_profiler"
    program.write_text(PROFILER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    found = await late_devices(GpuSettings(), 64 * GIB)
    refused = await late_devices(GpuSettings(lend=False), 64 * GIB)
    monkeypatch.undo()
    assert refused == ()
    assert [(one.model, one.memory_bytes, one.vendor) for one in found] == [("Apple M3 Max", 48 * GIB, "apple")]
    gpus = bare((Device("gpu", "first", GIB),))
    gpus.add(found)
    assert gpus.take("a", GpuSpec(count=1, models=("M3 Max",))) == (1,)
    assert gpus.take("b", GpuSpec(count=1)) == (0,)
    strangers = bare((), shares=False)
    strangers.add(found)
    assert "cannot be overwritten" in strangers.devices[0].fault
    assert strangers.take("a", GpuSpec(count=1)) is None


def test_parts_of_a_device_come_with_their_limits() -> None:
    gpus = bare((LARGE, SMALL))
    quarter = GpuSpec(1, models=("4090",), share=0.25)
    assert [gpus.take(name, quarter) for name in "abcde"] == [(1,), (1,), (1,), (1,), None]
    seen = gpus.environment((1,), quarter)
    assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-small"
    assert seen["XLA_PYTHON_CLIENT_MEM_FRACTION"] == seen["FALLOW_GPU_SHARE"] == "0.2250"
    assert seen["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=6144M"
    assert "FALLOW_GPU_SHARE" not in gpus.environment((1,), GpuSpec(1))


def test_strangers_share_no_device_and_get_none_that_cannot_be_wiped() -> None:
    gpus = bare((SMALL, AMD), shares=False)
    assert gpus.take("a", GpuSpec(1, share=0.1)) == (0,)
    assert gpus.take("b", GpuSpec(1, share=0.1)) is None
    assert "overwritten" in gpus.devices[1].fault


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_device_is_given_again_when_its_memory_is_free(driver: Driver, open_nvml: Callable[[], Nvml]) -> None:
    driver.say([Card("GPU-a")])
    nvml = open_nvml()
    gpus = Gpus(nvml.devices(), True, lambda: nvml)
    assert gpus.take("a", GpuSpec(1)) == (0,)
    driver.say([Card("GPU-a", free=4 * GIB)], [Process(0, 1, 0)])
    gpus.release("a")
    assert gpus.take("b", GpuSpec(1)) is None
    driver.say([Card("GPU-a")])
    await until(lambda: gpus.take("b", GpuSpec(1)) == (0,))
    await gpus.close()


async def test_a_device_whose_memory_stays_used_is_taken_out_in_words(
    driver: Driver, open_nvml: Callable[[], Nvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fallow.agent.devices.gpus.AGAIN_S", 0.05)
    driver.say([Card("GPU-a")])
    nvml = open_nvml()
    gpus = Gpus(nvml.devices(), True, lambda: nvml, wait_s=0.1)
    assert gpus.take("a", GpuSpec(1)) == (0,)
    driver.say([Card("GPU-a", free=4 * GIB)])
    gpus.release("a")
    await until(lambda: "did not come free" in gpus.devices[0].fault)
    assert gpus.take("b", GpuSpec(1)) is None
    driver.say([Card("GPU-a")])
    await until(lambda: gpus.devices[0].fault == "")
    assert gpus.take("b", GpuSpec(1)) == (0,)
    await gpus.close()


async def test_what_the_owner_uses_meanwhile_is_not_the_tenants(driver: Driver, open_nvml: Callable[[], Nvml]) -> None:
    driver.say([Card("GPU-a")])
    nvml = open_nvml()
    gpus = Gpus(nvml.devices(), True, lambda: nvml)
    assert gpus.take("a", GpuSpec(1)) == (0,)
    driver.say([Card("GPU-a", free=14 * GIB)], [Process(0, 1, 10 * GIB)])
    gpus.release("a")
    await until(lambda: gpus.take("b", GpuSpec(1)) == (0,))
    await gpus.close()


async def test_who_uses_more_than_its_part_is_killed(driver: Driver, open_nvml: Callable[[], Nvml]) -> None:
    driver.say([Card("GPU-a")])
    nvml = open_nvml()
    gpus = Gpus(nvml.devices(), True, lambda: nvml)
    half = GpuSpec(1, share=0.5)
    shell = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    child = int(shell.stdout.readline())
    try:
        assert gpus.take("greedy", half) == gpus.take("modest", half) == (0,)
        # What a worker's own children use counts as its use.
        driver.say([Card("GPU-a")], [Process(0, child, 14 * GIB), Process(0, os.getpid(), 12 * GIB)])
        killed: list[tuple[str, str, str]] = []
        greedy = Tenant("greedy", shell.pid, lambda kind, words: killed.append(("greedy", kind, words)))
        modest = Tenant("modest", 1 << 22, lambda kind, words: killed.append(("modest", kind, words)))
        gpus.guard([greedy, modest])
        await until(lambda: bool(killed))
        assert [(name, kind) for name, kind, _ in killed] == [("greedy", "memory")]
        assert "0.5 of NVIDIA GeForce RTX 4090" in killed[0][2]
    finally:
        os.kill(child, 9)
        shell.kill()
        shell.communicate()
        await gpus.close()


def wiping(memory: Path, library: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ,
        "FAKE_CUDA": str(memory),
        "LD_LIBRARY_PATH": str(library.parent),
        "CUDA_VISIBLE_DEVICES": "GPU-a",
        **more,
    }
    command = [sys.executable, "-m", "fallow.agent.devices.wipe"]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("piece", ["", str(7 << 20)])
def test_all_of_the_memory_is_overwritten(tmp_path: Path, cuda_library: Path, piece: str) -> None:
    from fallow.agent.devices.wipe import read_outcome

    memory = tmp_path / "memory"
    memory.write_bytes(b"secret weights! " * (4 << 20))
    more = {"FAKE_CUDA_PIECE": piece} if piece else {}
    done = wiping(memory, cuda_library, **more)
    assert read_outcome(done.returncode, done.stdout) == ""
    assert memory.read_bytes().strip(b"\0") == b""


def test_a_wipe_that_fails_says_why(tmp_path: Path, cuda_library: Path) -> None:
    from fallow.agent.devices.wipe import read_outcome

    done = wiping(tmp_path / "missing", cuda_library)
    assert read_outcome(done.returncode, done.stdout) == "its memory could not be overwritten: cuInit answered 100"
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(16 << 20))
    done = wiping(memory, cuda_library, FAKE_CUDA_PIECE="1")
    assert "only 0.00 of 0.02 GB" in read_outcome(done.returncode, done.stdout)
    assert "ended with status -9" in read_outcome(-9, b"")


async def test_strangers_get_a_device_only_after_a_wipe(
    driver: Driver,
    open_nvml: Callable[[], Nvml],
    tmp_path: Path,
    cuda_library: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(b"secret weights! " * (1 << 20))
    monkeypatch.setenv("FAKE_CUDA", str(memory))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda_library.parent))
    driver.say([Card("GPU-a")])
    nvml = open_nvml()
    gpus = Gpus(nvml.devices(), False, lambda: nvml)
    assert gpus.take("a", GpuSpec(1)) == (0,)
    gpus.release("a")
    assert gpus.take("b", GpuSpec(1)) is None
    await until(lambda: gpus.take("b", GpuSpec(1)) == (0,) or bool(gpus.devices[0].fault))
    assert gpus.devices[0].fault == ""
    assert memory.read_bytes().strip(b"\0") == b""
    monkeypatch.setenv("FAKE_CUDA", str(tmp_path / "missing"))
    gpus.release("b")
    await until(lambda: "could not be overwritten" in gpus.devices[0].fault)
    assert gpus.take("c", GpuSpec(1)) is None
    await gpus.close()
