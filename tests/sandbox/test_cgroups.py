"""Control groups: which hierarchies there are, in words of the kernel; and that all in a group ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fallow.sandbox.cgroups import Group, Mounted, Place, find_place, mounted, own_groups
from fallow.sandbox.protocol import Limits
from fallow.sandbox.sweep import owner_prefix

from .boxes import WITHIN_S

HYBRID = """\
30 23 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/a\\040b rw,relatime - cgroup2 cgroup2 rw
"""
FORKS = """
import os, sys, time
sys.stdin.readline()  # not before it is in its group: what it forked outside would go on for ever
for _ in range(10000):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.01)
"""


def test_hierarchies_and_own_groups_are_read() -> None:
    assert mounted(HYBRID) == [
        Mounted(Path("/sys/fs/cgroup/cpu,cpuacct"), 1, frozenset({"cpu"})),
        Mounted(Path("/sys/fs/cgroup/memory"), 1, frozenset({"memory"})),
        Mounted(Path("/sys/fs/cgroup/systemd"), 1, frozenset()),
        Mounted(Path("/sys/fs/cgroup/a b"), 2, frozenset()),
    ]
    assert own_groups("4:memory:/a\n2:cpu,cpuacct:/b/c:d\n1:name=systemd:/\n0::/user.slice\n") == {
        "memory": "/a",
        "cpu": "/b/c:d",
        "cpuacct": "/b/c:d",
        "name=systemd": "/",
        "": "/user.slice",
    }


def _places() -> list[Place]:
    """Where groups are made here, and the root of version 2 where that has no controller to hand out."""
    if sys.platform != "linux":
        return []
    found = [place] if (place := find_place()) is not None else []
    paths = [each.path for each in mounted(Path("/proc/self/mountinfo").read_text()) if each.version == 2]
    if not any(place.version == 2 for place in found):
        found += [Place(2, {"none": path}) for path in paths if os.geteuid() == 0 and os.access(path, os.W_OK)]
    return found


@pytest.fixture(params=[1, 2])
def place(request: pytest.FixtureRequest) -> Place:
    found = [place for place in _places() if place.version == request.param]
    if not found:
        pytest.skip(f"no group of version {request.param} can be made here")
    return found[0]


def test_all_in_a_group_end_with_it_while_they_fork(place: Place) -> None:
    group = Group(place, f"{owner_prefix()}test", Limits(processes=64))
    command = [sys.executable, "-I", "-S", "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as forking:
        try:
            group.add(forking.pid)
            assert forking.stdin is not None
            forking.stdin.write(b"\n")
            forking.stdin.flush()
            deadline = time.monotonic() + WITHIN_S
            while len(inside := group.pids()) < 5:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            group.remove()
            assert forking.wait(WITHIN_S) == -9
            assert not [pid for pid in inside if os.path.exists(f"/proc/{pid}/exe")]
        finally:
            forking.kill()
    assert not [parent for parent in place.parents.values() if (parent / f"{owner_prefix()}test").exists()]


def test_what_is_asked_of_a_group_is_what_its_kernel_has(place: Place) -> None:
    if "memory" not in place.parents:
        pytest.skip(f"version {place.version} has no controllers to hand out here")
    group = Group(place, f"{owner_prefix()}asked", Limits(memory_bytes=64 << 20, processes=7, cpu_share=0.5))
    try:
        assert set(group.bounds) == {"memory", "pids", "cpu"} & set(place.parents)
        names = ("memory.max", "memory.limit_in_bytes", "pids.max")
        files = [folder / name for folder in group._folders for name in names]
        said = {path.name: path.read_text().strip() for path in files if path.exists()}
    finally:
        group.remove()
    if place.version == 2:
        assert said["memory.max"] == str(64 << 20)
        assert said["pids.max"] == "7"
    else:
        assert said["memory.limit_in_bytes"] == str(64 << 20)
        assert said.get("pids.max", "7") == "7"
