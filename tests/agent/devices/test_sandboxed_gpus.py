"""Which GPUs a stranger's sandbox shows: those that its job was given, and for no longer than it has them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from fallow.agent.devices import found
from fallow.agent.devices import nvml as loader
from fallow.agent.devices.nvml import Nvml
from fallow.agent.link import Link, connect_patiently
from fallow.agent.node import Node
from fallow.agent.workers import Workers
from fallow.model.ids import NodeId
from fallow.model.job import GpuSpec, Resources
from fallow.model.lending import GpuSettings, LendingSettings
from fallow.model.tiers import Tier
from fallow.sandbox.protocol import Limits, Probe, Program, Running
from tests.agent.devices.drivers import GIB, Card, Driver
from tests.agent.owner import NatsServer, Owner, nats_server, owner_of, spec

pytestmark = pytest.mark.slow
CARDS = [Card("GPU-x", minor=3), Card("GPU-a", "NVIDIA H100 80GB HBM3", 80 * GIB, 80 * GIB, minor=1)]


class Noting:
    """The real sandbox. This machine has no device of NVIDIA's: which ones it was to show is noted, and not tried."""

    def __init__(self) -> None:
        from fallow.sandbox.bubblewrap import BubblewrapSandbox

        self.real = BubblewrapSandbox()
        self.shown: list[tuple[str, ...]] = []
        self.running: list[Running] = []

    name = "bubblewrap"
    tier = Tier.ISOLATED

    def probe(self) -> Probe:
        return self.real.probe()

    def start(self, program: Program) -> Running:
        self.shown.append(tuple(program.devices))
        self.running.append(self.real.start(msgspec.structs.replace(program, devices=())))
        return self.running[-1]


@pytest.fixture
async def owner() -> AsyncIterator[tuple[NatsServer, Owner]]:
    with nats_server() as server:
        async with owner_of(server.address) as made:
            yield server, made


def test_only_what_the_owner_lends_is_offered(
    driver: Driver, open_nvml: Callable[[], Nvml], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver.say(CARDS)
    monkeypatch.setattr(loader, "_shared", open_nvml())

    async def offered(lending: LendingSettings | None, own_pool: bool) -> tuple[list[str], bool]:
        workers = Workers(tmp_path)
        node = Node(NodeId("0123456789abcdef"), "n", 1, tmp_path, tmp_path, workers, False, lending, own_pool)
        return [device.uuid for device in node.gpus.devices], node.spec.shares_gpus

    assert asyncio.run(offered(None, True)) == (["GPU-x", "GPU-a"], True)
    assert asyncio.run(offered(None, False)) == (["GPU-x", "GPU-a"], False)
    only = LendingSettings(gpu=GpuSettings(models=("H100",)))
    assert asyncio.run(offered(only, False)) == (["GPU-a"], False)
    assert asyncio.run(offered(LendingSettings(gpu=GpuSettings(lend=False)), False)) == ([], False)


async def test_a_sandbox_shows_the_devices_of_its_job_and_ends_with_them(
    owner: tuple[NatsServer, Owner],
    driver: Driver,
    open_nvml: Callable[[], Nvml],
    cuda_library: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if sys.platform != "linux":
        pytest.skip("sandboxes need Linux")
    from fallow.agent.confined import Confinement

    sandbox = Noting()
    if not sandbox.probe().works:
        pytest.skip(f"no sandbox here: {sandbox.probe().words} {sandbox.probe().remedy}")
    memory = tmp_path / "memory"
    memory.write_bytes(b"x" * (16 << 20))
    monkeypatch.setenv("FAKE_CUDA", str(memory))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda_library.parent))
    monkeypatch.setattr(found, "NVIDIA_ALWAYS", ("/dev/null",))
    driver.say(CARDS)
    monkeypatch.setattr(loader, "_shared", open_nvml())
    nats, pool = owner
    for name in ("home", "scratch"):
        (tmp_path / name).mkdir()
    workers = Workers(tmp_path / "scratch", Confinement(sandbox, Limits()))
    node = Node(NodeId("0123456789abcdef"), "node", 1, tmp_path / "home", tmp_path / "scratch", workers, False)
    ended = asyncio.Event()
    link = Link(await connect_patiently(nats.address, "agent"), node.on_message)
    serving = asyncio.ensure_future(node.serve(link, ended, None))

    def visible(x: int) -> str:
        import os

        return os.environ["CUDA_VISIBLE_DEVICES"]

    try:
        one = spec(visible, resources=Resources(gpu=GpuSpec(1, models=("H100",))), least_tier=int(Tier.ISOLATED))
        pool.assign(await pool.node(), 0, one)
        pool.lease(await pool.pull(), (1, 1), [0])
        hand_ins = await pool.ended((1, 1))
        assert not any(hand_in.deaths for hand_in in hand_ins)
        assert b"GPU-a" in b"".join(page.page.data or b"" for one in hand_ins for page in one.results)
        assert [nodes for nodes in sandbox.shown if nodes] == [("/dev/nvidia1", "/dev/null")]
        box = sandbox.running[sandbox.shown.index(("/dev/nvidia1", "/dev/null"))]
        assert box.poll() is None
        pool.assign(node.node_id, 0, None)
        node.slots[0].lanes[0]._release()
        await pool.until("the end of the sandbox", lambda: box.poll() is not None)
        await pool.until("the wiped device", lambda: node.gpus.take("next", GpuSpec(1, models=("H100",))))
        assert memory.read_bytes().strip(b"\0") == b""
    finally:
        ended.set()
        await serving
        await node.close()
