"""What an agent that was killed leaves behind is removed by the next one, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fallow.sandbox.cgroups import find_place
from fallow.sandbox.sweep import is_orphan, own_folder, owner_prefix, started, sweep
from fallow.sandbox.tree import descendants
from tests.plain_user import USER, command, environment, home_of_user
from tests.pool import REPOSITORY

from .boxes import WITHIN_S
from .conftest import working

_AGENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.sandbox.boxes import Box
from fallow.model.lending import SandboxSettings
from fallow.sandbox.choose import BACKENDS
from fallow.sandbox.sweep import own_folder, owner_prefix
own_folder('test-')
running = Box(BACKENDS[sys.argv[3]](SandboxSettings()), Path(sys.argv[2])).start('time.sleep(600)')
print(owner_prefix(), running.init_pid, flush=True)
time.sleep(600)
"""


def _left(prefix: str) -> list[Path]:
    place = find_place()
    parents = {Path("/run"), Path("/tmp"), *(place.parents.values() if place is not None else ())}
    return sorted(path for parent in parents for path in parent.glob(f"{prefix}*"))


def test_names_tell_whose_they_are() -> None:
    assert not is_orphan(owner_prefix() + "x")
    assert is_orphan(f"fallow-{os.getpid()}-{started(os.getpid()) + 1}-x"), "the number went to another process since"
    assert is_orphan("fallow-4194304999-77-x")
    assert not is_orphan("fallow-agent")
    assert not is_orphan("fallow-bwrap-77")


def test_living_agents_folders_and_links_stay(tmp_path: Path) -> None:
    mine = Path(own_folder("test-"))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("the owner's")
    dead = tmp_path / "fallow-4194304999-77-root-a"
    dead.mkdir()
    (dead / "inside").symlink_to(kept)
    (tmp_path / "fallow-4194304999-77-link").symlink_to(kept)
    try:
        assert sweep([tmp_path, mine.parent / "nowhere"]) == [dead]
        assert (kept / "file").read_text() == "the owner's"
        sweep([mine.parent])
        assert mine.is_dir()
    finally:
        mine.rmdir()


@pytest.mark.parametrize("name", ["bubblewrap", pytest.param("gvisor", marks=pytest.mark.slow)])
def test_what_a_killed_agent_left_is_removed(tmp_path: Path, name: str) -> None:
    working(name)
    command = [sys.executable, "-c", _AGENT, str(Path(__file__).parents[2]), str(tmp_path), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        try:
            prefix, init = agent.stdout.readline().split()
            assert prefix.startswith("fallow-")
            running = {pid: started(pid) for pid in (int(init), *descendants(int(init)))}
            assert all(running.values())
            before = _left(prefix)
            assert before, "there was something to leave behind"
        finally:
            agent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + WITHIN_S
    while any(started(pid) == when and os.path.exists(f"/proc/{pid}/exe") for pid, when in running.items()):
        assert time.monotonic() < deadline, "what ran in the sandbox outlives the agent"
        time.sleep(0.01)
    if find_place() is not None:
        assert len(before) > 1, "a control group too"
    assert set(before) <= set(_left(prefix)), "a killed agent tidies nothing"
    sweep({path.parent for path in before})
    assert _left(prefix) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_what_other_users_dead_agents_left_is_theirs(tmp_path: Path) -> None:
    """(Which a user may not even look into.)"""
    with home_of_user() as home:
        at = home / "fallow-4194304999-77-mounts-a"
        at.mkdir(mode=0o700)
        code = f"from pathlib import Path; from fallow.sandbox.sweep import sweep; print(sweep([Path({str(home)!r})]))"
        done = subprocess.run(
            command(sys.executable, "-c", code), cwd=REPOSITORY, env=environment(home), capture_output=True, text=True
        )
        assert done.stdout.strip() == "[]", done.stderr
        os.chown(at, USER, USER)
        assert sweep([home]) == [], "nor does root remove a user's"
        assert at.exists()


@pytest.mark.parametrize("name", ["fallow-1-", "fallow-x-1-", "other-1-1-"])
def test_other_names_are_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert sweep([tmp_path]) == []
