from __future__ import annotations

import sys

import pytest

from fallow.agent.memory import MachineMemory, choose_victim, private_bytes, reserve_bytes

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
