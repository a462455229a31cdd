"""What the agent says of its machine."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from fallow.agent import probe
from fallow.model.ids import NodeId


def test_the_node_knows_its_machine(tmp_path: Path) -> None:
    spec = probe.probe_node(NodeId("0123456789abcdef"), "name", 0, tmp_path, "1.0")
    assert spec.slots == spec.cpu_count
    assert 1 <= spec.cpu_count <= (os.cpu_count() or 1)
    assert spec.memory_bytes > 1 << 26
    assert spec.disk_free_bytes > 0
    assert spec.pythons == (probe.own_python(),)
    assert spec.pid == os.getpid()
    assert probe.probe_node(NodeId("0123456789abcdef"), "name", 7, tmp_path, "1.0").slots == 7


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("50000 100000", 0.5),
        ("", None),
        ("junk", None),
        ("1 0", None),
    ],
)
def test_quotas_of_control_groups(text: str, cpus: float | None) -> None:
    assert probe.parse_cpu_max(text) == cpus


def test_a_quota_cuts_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    monkeypatch.setattr(probe, "CGROUP", tmp_path)
    assert probe.cpu_count() == 1
    assert probe.memory_bytes() == 1 << 30


def test_memory_in_use_is_less_than_all() -> None:
    assert 0 < probe.memory_used_bytes() < 1 << 50
    assert probe.load_average() >= 0.0


def test_other_pythons_are_found_by_running_them() -> None:
    for version, path in asyncio.run(probe.find_pythons()).items():
        assert version != probe.own_python()
        assert os.access(path, os.X_OK)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_other_interpreters_are_looked_for_behind_all_other_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be a script of a version manager's that takes seconds of CPU time, just when the first job comes."""
    slow = tmp_path / "uv"
    # It looks at its own priority until it is the last, as long as a test may take.
    slow.write_text(f'#!/bin/sh\nuntil [ "$(nice)" = 19 ]; do sleep 0.01; done\necho {sys.executable}\n')
    slow.chmod(0o755)
    monkeypatch.setattr(probe, "uv_program", lambda: str(slow))
    assert asyncio.run(probe.find_pythons(["3.0"])) == {"3.0": sys.executable}
