"""Claims of speed against what tasks show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fallow.core.capability import OFF_FACTOR, found_out, implausible
from fallow.core.demand import JobDemand, NodeView
from fallow.core.matching import plan
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, GpuSpec, JobKind, JobSpec, Resources
from fallow.model.node import Device, NodeSpec

HONEST = {NodeId(f"n{at}"): 1.0 + at / 4 for at in range(4)}
LIAR = NodeId("liar")


def rates(true: dict[NodeId, float], jobs: int = 2, work: float = 10.0) -> dict[tuple[JobId, NodeId], float]:
    return {(JobId(f"j{at}"), node): speed * work * (at + 1) for at in range(jobs) for node, speed in true.items()}


def test_a_node_that_claims_ten_times_its_speed_is_found_out() -> None:
    found = found_out(rates(HONEST | {LIAR: 1.0}), HONEST | {LIAR: 10.0})
    assert found == {LIAR: pytest.approx(1.0)}


def test_one_job_is_not_enough_nor_are_two_nodes() -> None:
    assert found_out(rates(HONEST | {LIAR: 1.0}, jobs=1), HONEST | {LIAR: 10.0}) == {}
    assert found_out(rates({NodeId("a"): 1.0, LIAR: 1.0}), {NodeId("a"): 1.0, LIAR: 10.0}) == {}


def test_tasks_that_wait_accuse_nobody() -> None:
    claims = {NodeId("slow"): 0.5, NodeId("middle"): 1.0, NodeId("usual"): 1.0, NodeId("fast"): 4.0}
    waiting = {(JobId(f"wait{at}"), node): 5.0 for at in range(3) for node in claims}
    computing = {(JobId("compute"), node): speed for node, speed in claims.items()}
    assert found_out(waiting | computing, claims) == {}


def test_a_node_without_a_claim_is_not_judged() -> None:
    assert found_out(rates(HONEST | {LIAR: 0.1}), HONEST) == {}


@given(
    st.lists(st.floats(0.2, 5.0), min_size=5, max_size=12),
    st.sampled_from((0.05, 0.1, 8.0, 30.0)),
    st.floats(0.8, 1.25),
)
def test_honest_nodes_are_never_accused_of_another_s_lie(speeds: list[float], lie: float, noise: float) -> None:
    true = {NodeId(f"n{at}"): speed for at, speed in enumerate(speeds)}
    claims = {**true, LIAR: lie}
    seen = {key: rate * (noise if at % 2 else 1.0) for at, (key, rate) in enumerate(rates(true | {LIAR: 1.0}).items())}
    found = found_out(seen, claims)
    assert set(found) == {LIAR}
    assert 1 / 2 < found[LIAR] < 2 < OFF_FACTOR


@pytest.mark.parametrize(
    ("model", "gflops", "words"),
    [
        ("NVIDIA H100 80GB HBM3", 50_000, ""),
        ("NVIDIA H100 80GB HBM3", 4_500, "too slow"),  # a T4
        ("Tesla T4", 4_500, ""),
        ("Tesla T4", 50_000, "too fast"),
        ("NVIDIA GeForce RTX 4090", 60_000, ""),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15_000, ""),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 2_000, ""),
        ("NVIDIA X999", 1, ""),
        ("NVIDIA L40S", 60_000, ""),
        ("NVIDIA H100 80GB HBM3", 0, ""),
    ],
)
def test_a_model_that_is_not_what_it_says(model: str, gflops: float, words: str) -> None:
    found = implausible(Device("gpu", model, 80 << 30, speed=gflops))
    assert words in found
    assert bool(found) == bool(words)


def node(name: str, speed: float, gpu_speed: float = 0.0) -> NodeView:
    devices = (Device("gpu", "NVIDIA A100", 40 << 30, speed=gpu_speed),) if gpu_speed else ()
    spec = NodeSpec(NodeId(name), name, 2, 2, 1 << 33, 1 << 40, "linux", ("3.11",), "1", devices, speed=speed)
    return NodeView(spec, {})


def job(want: int, resources: Resources) -> JobDemand:
    spec = JobSpec(JobId("j"), "j", JobKind.MAP, ClientId("c"), Blob(Digest(""), 0, b""), resources=resources)
    return JobDemand(spec, want)


def test_faster_nodes_are_taken_first() -> None:
    views = [node("slow", 0.5), node("fast", 3.0), node("usual", 1.0), node("unknown", 0.0)]
    assert {n for n, _ in plan([job(2, Resources())], views).changes} == {"fast"}
    assert {n for n, _ in plan([job(6, Resources())], views).changes} == {"fast", "usual", "unknown"}


def test_for_gpu_jobs_the_faster_gpu_counts() -> None:
    views = [node("quick", 4.0, 9_000.0), node("strong", 1.0, 18_000.0)]
    assert {n for n, _ in plan([job(1, Resources(gpu=GpuSpec(1)))], views).changes} == {"strong"}
