"""The owner of a machine has it back: a real agent in this process, with real workers, against a played owner."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

from fallow.agent.node import Node
from fallow.model.ids import Digest
from fallow.model.job import Blob
from tests.agent.nodes import node_at
from tests.agent.owner import NatsServer, Owner, given_back, is_alive, spec, values

GRACE_S = 1.2
GONE_WITHIN_S = 2.0


def quick_then_long(x: int) -> int:
    if x == 100:
        time.sleep(600)
    return x


def ignores_the_signal(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(600)"])
    grandchild = subprocess.Popen(
        ["sh", "-c", f"setsid sh -c 'echo $$ > {folder}/deep; setsid sleep 600' & echo $$ > {folder}/shell; wait"],
        start_new_session=True,
    )
    Path(folder, "pids").write_text(f"{os.getpid()} {child.pid} {grandchild.pid}")
    time.sleep(600)


def counts_with_a_hook(path: str) -> None:
    import fallow

    step = 0
    with fallow.checkpoint.on_preempt(lambda: fallow.checkpoint.save(step, force=True)):
        while True:
            step += 1
            # The hook, and then the end, may come within this line: the file is whole all the same.
            Path(path + ".new").write_text(str(step))
            Path(path + ".new").replace(path)
            time.sleep(0.01)


def saves_each_step(path: str) -> int:
    import fallow

    step: int = fallow.checkpoint.load(default=0)
    while step < 100_000:
        step += 1
        if step == 3:
            Path(path).write_text(str(fallow.preempted()))
        fallow.checkpoint.save(step)
        time.sleep(0.01)
    return step


def tells(path: str) -> float:
    import fallow

    Path(path).write_text("runs")
    while not fallow.preempted():
        time.sleep(0.01)
    return fallow.preempted()


async def stopped(node: Node, owner: Owner, slots: list[int] | None = None) -> float:
    """Preempt, and wait until no worker is left: how long that took."""
    gone: set[int] = set()
    node.after_stop.append(gone.add)
    began = time.monotonic()
    node.preempt(slots, "the keyboard was used", GRACE_S)
    wanted = set(range(len(node.slots))) if slots is None else set(slots)
    await owner.until("the workers' end", lambda: gone >= wanted)
    node.after_stop.remove(gone.add)
    return time.monotonic() - began


async def test_nothing_that_is_done_is_lost_and_the_rest_goes_back(
    nats: NatsServer, owner: Owner, tmp_path: Path
) -> None:
    async with node_at(nats, tmp_path) as node:
        owner.assign(await owner.node(), 0, spec(quick_then_long))
        owner.lease(await owner.pull(), (1, 1), range(150))
        await owner.until("the long task", lambda: any(held.index == 100 for held in node.slots[0].leases()))
        owner.lease(await owner.pull(idle=None), (1, 2), range(150, 200), start=150)
        await owner.until("the lease ahead", lambda: len(node.slots[0].leases()) == 2)
        assert await stopped(node, owner) < GONE_WITHIN_S
        first, second = await owner.ended((1, 1)), await owner.ended((1, 2))
        assert values(first) == {index: index for index in range(100)}
        assert given_back(first) == set(range(100, 150))
        assert given_back(second) == set(range(150, 200))
        assert not any(hand_in.deaths for hand_in in first + second)
        assert 0 < sum(hand_in.wasted_s for hand_in in first) < 60
        assert owner.beats[-1].paused == "the keyboard was used"
        await owner.until("a beat of a node at rest", lambda: owner.beats[-1].busy == 0)
        assert not any(lane.seat for lane in node.slots[0].lanes.values())

        owner.pulls.clear()
        node.allow(None)
        owner.lease(await owner.pull(), (1, 3), range(3))
        assert values(await owner.ended((1, 3))) == {0: 0, 1: 1, 2: 2}
        assert owner.beats[-1].paused == ""


async def test_a_task_that_ignores_all_is_gone_with_its_grandchildren(
    nats: NatsServer, owner: Owner, tmp_path: Path
) -> None:
    async with node_at(nats, tmp_path) as node:
        owner.assign(await owner.node(), 0, spec(ignores_the_signal))
        owner.lease(await owner.pull(), (1, 1), [str(tmp_path)])
        files = [tmp_path / name for name in ("pids", "deep", "shell")]
        await owner.until("its pids", lambda: all(file.exists() and file.read_text().strip() for file in files))
        pids = [int(pid) for file in files for pid in file.read_text().split()]
        assert len(pids) == 5
        assert await stopped(node, owner) < GONE_WITHIN_S
        await owner.until("the end of all", lambda: not any(is_alive(pid) for pid in pids))
        hand_ins = await owner.ended((1, 1))
        assert given_back(hand_ins) == {0}
        assert not any(hand_in.deaths for hand_in in hand_ins)


async def test_a_hook_saves_and_the_worker_is_gone_at_once(nats: NatsServer, owner: Owner, tmp_path: Path) -> None:
    async with node_at(nats, tmp_path) as node:
        owner.assign(await owner.node(), 0, spec(counts_with_a_hook))
        owner.lease(await owner.pull(), (1, 1), [str(tmp_path / "step")])
        await owner.until("some steps", lambda: (tmp_path / "step").exists())
        await stopped(node, owner)
        hand_ins = await owner.ended((1, 1))
        assert owner.states[0].data is not None
        assert 0 < pickle.loads(owner.states[0].data) <= int((tmp_path / "step").read_text()) + 1
        assert sum(hand_in.wasted_s for hand_in in hand_ins) < GRACE_S


async def test_saved_in_each_step_nothing_runs_twice(nats: NatsServer, owner: Owner, tmp_path: Path) -> None:
    async with node_at(nats, tmp_path) as node:
        owner.assign(await owner.node(), 0, spec(saves_each_step))
        owner.lease(await owner.pull(), (1, 1), [str(tmp_path / "third")])
        await owner.until("some steps", lambda: (tmp_path / "third").exists())
        await stopped(node, owner)
        await owner.ended((1, 1))
        assert (tmp_path / "third").read_text() == "0.0"
        at = owner.states[0]
        assert at.data is not None
        assert pickle.loads(at.data) >= 3

        node.allow(None)
        owner.pulls.clear()
        more = ((0, state_of(99_999)),)
        owner.lease(await owner.pull(), (1, 2), [str(tmp_path / "third")], checkpoints=more)
        assert values(await owner.ended((1, 2))) == {0: 100_000}


def state_of(value: int) -> Blob:
    data = pickle.dumps(value)
    return Blob(Digest("1" * 64), len(data), data)


async def test_a_task_may_end_within_the_grace(nats: NatsServer, owner: Owner, tmp_path: Path) -> None:
    async with node_at(nats, tmp_path) as node:
        owner.assign(await owner.node(), 0, spec(tells))
        owner.lease(await owner.pull(), (1, 1), [str(tmp_path / "runs")])
        await owner.until("the task", lambda: (tmp_path / "runs").exists())
        assert await stopped(node, owner) < GONE_WITHIN_S
        hand_ins = await owner.ended((1, 1))
        (left_s,) = values(hand_ins).values()
        assert 0 < float(str(left_s)) <= GRACE_S
        assert not given_back(hand_ins)


async def test_one_slot_is_paused_and_the_other_works_on(nats: NatsServer, owner: Owner, tmp_path: Path) -> None:
    async with node_at(nats, tmp_path, slots=2) as node:
        node_id = await owner.node()
        await stopped(node, owner, [0])
        owner.assign(node_id, 0, spec(quick_then_long))
        owner.assign(node_id, 1, spec(quick_then_long))
        owner.lease(await owner.pull(slot=1), (1, 1), range(10))
        assert len(values(await owner.ended((1, 1)))) == 10
        assert not [pull for pull in owner.pulls if pull.slot == 0]
        assert owner.beats[-1].paused == ""
        node.allow([0])
        owner.lease(await owner.pull(slot=0), (1, 2), range(10))
        assert len(values(await owner.ended((1, 2)))) == 10


async def test_on_and_off_in_a_row(nats: NatsServer, owner: Owner, tmp_path: Path) -> None:
    async with node_at(nats, tmp_path) as node:
        owner.assign(await owner.node(), 0, spec(quick_then_long))
        for _ in range(20):
            node.preempt(None, "the mouse was moved", GRACE_S)
            node.allow(None)
            await asyncio.sleep(0)
        owner.pulls.clear()
        owner.lease(await owner.pull(), (1, 1), range(50))
        assert len(values(await owner.ended((1, 1)))) == 50
