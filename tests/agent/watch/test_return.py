"""The owner's return, for real: an agent with its watch, an X server, a key, and nothing of the pool's is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fallow.model.ids import Token
from fallow.model.lending import LendingSettings, OwnerSettings, SandboxSettings
from fallow.model.tiers import Tier
from tests.agent.owner import Agent, NatsServer, Owner, given_back, spec, values

from .conftest import XServer

WATCHED = LendingSettings(
    # Other tests load the machine: that is not what is tried here.
    owner=OwnerSettings(idle_s=1.0, settle_s=0.0, busy_cpu_share=1.0, resume_cpu_share=1.0),
    sandbox=SandboxSettings(backend="process", least=Tier.PROCESS),
)


@pytest.fixture
def start_watched(nats: NatsServer, tmp_path: Path, x_server: XServer) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start(lending: LendingSettings = WATCHED, slots: int = 2) -> Agent:
        agents.append(Agent(nats.address, tmp_path / "home", slots, lending=lending))
        return agents[-1]

    yield start
    for agent in agents:
        agent.destroy()


def short_then_long(item: dict[str, Any]) -> Any:
    """Long ones start a process that would outlive them."""
    import pathlib
    import subprocess
    import time

    if item["long"]:
        child = subprocess.Popen(["sleep", "1000"])
        pathlib.Path(item["file"]).write_text(str(child.pid))
        time.sleep(1000)
    return item["number"]


@pytest.mark.slow
async def test_a_key_stops_everything_and_loses_no_finished_task(
    start_watched: Callable[..., Agent], x_server: XServer, owner: Owner, tmp_path: Path
) -> None:
    agent = start_watched()
    node = await owner.node()
    await owner.until("leave to work", lambda: owner.beats[-1].paused == "")
    owner.assign(node, 0, spec(short_then_long))
    pull = await owner.pull()
    mark = tmp_path / "child"
    items = [{"long": number == 50, "number": number, "file": str(mark)} for number in range(60)]
    lease = owner.lease(pull, Token((1, 1)), items)
    await owner.until("the long task", lambda: mark.exists() and mark.read_text())
    workers = [one for one in agent.descendants() if "sleep" in one.name() or _is_worker(one)]
    assert any(one.pid == int(mark.read_text()) for one in workers)
    before_s = time.monotonic()
    await asyncio.to_thread(x_server.press)
    await owner.until("the stop", lambda: not any(_runs(one) for one in workers))
    took_s = time.monotonic() - before_s
    hand_ins = await owner.ended(lease.token)
    assert set(values(hand_ins)) == set(range(50)), "what was finished is handed in, all of it"
    assert given_back(hand_ins) == set(range(50, 60))
    await owner.until("the reason", lambda: any("keyboard or mouse used" in beat.paused for beat in owner.beats))
    await owner.until("the return to work", lambda: owner.beats[-1].paused == "")
    assert took_s < 30.0
    print(f"from key to nothing left: {took_s:.3f} s")


def _is_worker(process: psutil.Process) -> bool:
    """A process that a zygote forked: it has no children but what tasks start."""
    parent = process.parent()
    return parent is not None and "zygote" in " ".join(parent.cmdline())


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
async def test_a_machine_that_cannot_tell_stays_its_owners(
    start_watched: Callable[..., Agent], x_server: XServer, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A display that lets nobody in: busy, in words that help."""
    monkeypatch.setenv("DISPLAY", "nowhere.invalid:0")
    start_watched()
    await owner.node()
    await owner.until("the words", lambda: "owner.watch = false" in owner.beats[-1].paused)
