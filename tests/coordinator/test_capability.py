"""The leader gathers what tasks show, and what it finds out stands in listings and in what the matcher sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fallow.coordinator.capability import EVERY_S, Capability
from fallow.coordinator.nodes import NodeRegistry
from fallow.model.ids import JobId, NodeId
from fallow.model.job import GpuSpec, Resources
from fallow.model.node import Device, NodeSpec
from fallow.wire.messages import Beat


class Pool:
    """Real registry and watch; jobs are no more than their rates."""

    def __init__(self) -> None:
        self.nodes = NodeRegistry(SimpleNamespace(send=lambda *_: None))  # type: ignore[arg-type]
        self.jobs: dict[JobId, Any] = {}
        context: Any = SimpleNamespace(nodes=self.nodes, session=SimpleNamespace(leads=True))
        self.watch = Capability(context, SimpleNamespace(active=self.jobs))  # type: ignore[arg-type]
        self.now = 0.0

    def node(self, name: str, speed: float, gflops: float = 0.0) -> None:
        cards = (Device("gpu", "NVIDIA H100 80GB HBM3", 80 << 30, name, speed=gflops),) if gflops else ()
        node_id = NodeId(name)
        spec = NodeSpec(node_id, name, 2, 2, 1 << 33, 1 << 40, "linux", ("3.11",), "1", cards, speed=speed)
        self.nodes.beat(Beat(node_id, "s", 1, (), 0, spec=spec), 0.0, 0.0)

    def job(self, name: str, rates: dict[str, float], gpu: bool = False) -> None:
        progress = SimpleNamespace(slot_rates=lambda: (((NodeId(node), 0), rate) for node, rate in rates.items()))
        resources = Resources(gpu=GpuSpec(1) if gpu else GpuSpec())
        self.jobs[JobId(name)] = SimpleNamespace(spec=SimpleNamespace(resources=resources), progress=progress)

    def look(self) -> dict[str, Any]:
        self.now += EVERY_S
        self.watch.tick(self.now)
        return {info.spec.name: info for info in self.nodes.infos(0.0)}


def test_a_claim_that_tasks_do_not_bear_out_is_replaced_until_they_do() -> None:
    pool = Pool()
    for name, speed in (("a", 1.0), ("b", 2.0), ("c", 1.0), ("liar", 20.0)):
        pool.node(name, speed)
    slow = {"a": 10.0, "b": 20.0, "c": 10.0, "liar": 10.0}
    pool.job("one", slow)
    assert pool.look()["liar"].spec.speed == 20.0, "one job is not enough"
    pool.job("two", slow)
    seen = pool.look()
    assert seen["liar"].spec.speed == pytest.approx(1.0)
    assert seen["liar"].reason == "claims a speed of 20; its tasks show 1"
    assert (seen["a"].spec.speed, seen["a"].reason) == (1.0, "")
    assert {view.spec.name: view.spec.speed for view in pool.nodes.views()}["liar"] == pytest.approx(1.0)
    pool.job("one", slow | {"liar": 200.0})
    assert pool.look()["liar"].reason == ""


def test_a_gpu_that_says_it_is_an_h100_and_works_like_a_t4_is_taken_out() -> None:
    pool = Pool()
    for name in ("a", "b", "c", "faked"):
        pool.node(name, 1.0, 48_000.0)
    for job in ("one", "two"):
        pool.job(job, {"a": 100.0, "b": 101.0, "c": 99.0, "faked": 9.0}, gpu=True)
    seen = pool.look()
    assert "too slow for one" in seen["faked"].spec.devices[0].fault
    assert "claims GPUs of 4.8e+04 Gflop/s" in seen["faked"].reason
    assert seen["a"].spec.devices[0].fault == ""
    assert seen["faked"].spec.speed == 1.0


def test_a_measured_speed_that_no_such_model_has_needs_no_task() -> None:
    pool = Pool()
    pool.node("faked", 1.0, 4_500.0)
    assert "too slow" in pool.look()["faked"].spec.devices[0].fault


def test_absurd_claims_harm_nobody() -> None:
    from fallow.core.matching import plan

    pool = Pool()
    for name, speed in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("inf", float("inf")), ("nan", float("nan"))):
        pool.node(name, speed, speed * 1000)
    for job in ("one", "two"):
        pool.job(job, dict.fromkeys(("a", "b", "c", "inf", "nan"), 10.0))
    assert pool.look()["inf"].spec.speed == pytest.approx(1.0)
    assert plan([], pool.nodes.views()).changes == {}
