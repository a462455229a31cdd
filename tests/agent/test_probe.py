"""What the agent says of its machine."""

from __future__ import annotations

import asyncio
import json
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


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's idle class")
def test_other_interpreters_are_looked_for_behind_all_other_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be a script of a version manager's that takes a while, just when the first job comes."""
    listed = [
        {"version": "3.0.2", "path": sys.executable, "implementation": "cpython", "variant": "default"},
        {"version": "3.0.1", "path": "/bin/sh", "implementation": "cpython", "variant": "default"},
        {"version": f"{probe.own_python()}.0", "path": sys.executable},
        {"version": "3.1.0", "path": sys.executable, "implementation": "pypy"},
        {"version": "3.2.0", "path": sys.executable, "implementation": "cpython", "variant": "freethreaded"},
        {"version": "3.3.0rc1", "path": sys.executable, "implementation": "cpython", "variant": "default"},
        {"version": "3.4.0", "path": str(tmp_path / "gone")},
        {"version": "3.5.0", "path": None},
        {"version": "2.7.18", "path": sys.executable},
    ]
    # It looks at its own class until it is the last, as long as a test may take.
    wait = "import os, time\nwhile os.sched_getscheduler(0) != os.SCHED_IDLE: time.sleep(0.01)\n"
    uv = program(tmp_path / "uv", f"{wait}print({json.dumps(json.dumps(listed))})\n")
    monkeypatch.setattr(probe, "uv_program", lambda: str(uv))
    wanted = [f"3.{minor}" for minor in range(6)]
    assert asyncio.run(probe.find_pythons([*wanted, probe.own_python()])) == {"3.0": sys.executable}


@pytest.mark.skipif(sys.platform == "win32", reason="needs scripts with an interpreter line")
def test_what_pyenv_has_is_found_whatever_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyenv's own scripts on the PATH refuse all versions but those that the user has chosen just now."""
    shims = program(tmp_path / "pyenv" / "shims" / "python3.0", "raise SystemExit(127)\n").parent
    kept = program(tmp_path / "pyenv" / "versions" / "3.0.4" / "bin" / "python3.0", "\n")
    look = "import json, shutil\nprint(json.dumps([{'version': '3.0.4', 'path': shutil.which('python3.0')}]))\n"
    uv = program(tmp_path / "uv", look)
    monkeypatch.setattr(probe, "uv_program", lambda: str(uv))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(shims), os.environ["PATH"]]))
    assert asyncio.run(probe.find_pythons(["3.0"])) == {"3.0": str(kept)}


@pytest.mark.skipif(sys.platform == "win32", reason="needs scripts with an interpreter line")
@pytest.mark.parametrize("words", ["print('no JSON')", "raise SystemExit(2)", "print('{}')"])
def test_a_uv_that_tells_nothing_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    uv = program(tmp_path / "uv", words)
    monkeypatch.setattr(probe, "uv_program", lambda: str(uv))
    assert asyncio.run(probe.find_pythons()) == {}
