from __future__ import annotations

import sys

import pytest

from fallow.agent.memory import MachineMemory, choose_victim, private_bytes, reserve_bytes
from tests.worker.harness import Bench

GB = 1 << 30


@pytest.mark.parametrize(
    ("available", "used", "victim"),
    [
        (10 * GB, {1: 50 * GB}, None),
        (1 * GB, {}, None),
        (1 * GB, {1: 20 * GB, 2: 30 * GB}, 2),
        (1 * GB, {1: 1 * GB, 2: 2 * GB}, None),  # somebody else's fault
    ],
)
def test_who_is_ended_when_memory_runs_out(available: int, used: dict[int, int], victim: int | None) -> None:
    assert choose_victim(available, 64 * GB, used) == victim


def test_small_machines_keep_a_small_reserve() -> None:
    assert reserve_bytes(GB) == GB // 10
    assert reserve_bytes(4 * GB) == 256 << 20
    assert reserve_bytes(100 * GB) == 3 * GB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_machine_is_measured() -> None:
    import os

    memory = MachineMemory()
    assert 0 < memory.available <= memory.total
    held = bytearray(os.urandom(1024)) * 50_000
    assert private_bytes(os.getpid()) > len(held)
    assert private_bytes(2**22 + 1) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_task_without_limit_is_ended_before_the_machine_is_full(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(available: int, total: int, used: dict[int, int]) -> int | None:
        """As if every worker's 100 MB were all there is."""
        return next((key for key, value in used.items() if value > 100_000_000), None)

    monkeypatch.setattr("fallow.agent.zygote.choose_victim", scarce)

    def work(x: int) -> int:
        import os
        import time

        held = []
        while x == 1:
            held.append(bytearray(os.urandom(1024) * 1024))
            time.sleep(0.002)
        return x

    bench.run(work, range(3))
    death = await bench.recorder.death()
    assert (death.kind, death.index) == ("memory", 1)
    assert "the machine is out of memory" in death.message
