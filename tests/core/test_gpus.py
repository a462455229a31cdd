"""The book of a node's GPUs: never more given than there is, one tenant where they are not divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fallow.core.demand import JobDemand, NodeView
from fallow.core.fit import misfit
from fallow.core.gpu_memory import Use, cap_bytes, not_wiped, over_cap, what_is_left
from fallow.core.gpus import UNITS, GpuBook, is_model, room, units_of
from fallow.core.matching import plan
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, GpuSpec, JobKind, JobSpec, Resources
from fallow.model.node import Device, NodeSpec

GIB = 1 << 30
MODELS = ("NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 4090", "Tesla T4")

devices = st.builds(
    Device,
    kind=st.just("gpu"),
    model=st.sampled_from(MODELS),
    memory_bytes=st.sampled_from((16 * GIB, 24 * GIB, 40 * GIB)),
    fault=st.sampled_from(("", "", "", "it is hot")),
)
shares = st.sampled_from((0.05, 0.1, 0.25, 1 / 3, 0.5, 0.7))
needs = st.one_of(
    st.builds(
        GpuSpec,
        count=st.integers(1, 3),
        min_memory_bytes=st.sampled_from((0, 20 * GIB)),
        models=st.sampled_from(((), ("A100",), ("4090", "T4"))),
    ),
    st.builds(GpuSpec, count=st.just(1), models=st.sampled_from(((), ("T4",))), share=shares),
)


@given(
    st.lists(devices, max_size=4),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 7), st.one_of(st.none(), needs)), max_size=40),
)
def test_never_more_is_given_than_there_is(
    cards: list[Device], divided: bool, events: list[tuple[int, GpuSpec | None]]
) -> None:
    book = GpuBook(cards, divided)
    truth: dict[int, tuple[tuple[int, ...], GpuSpec]] = {}
    for owner, need in events:
        if need is None:
            assert book.release(owner) == truth.pop(owner, ((), GpuSpec()))[0]
        elif owner in truth:
            assert book.take(owner, need) == truth[owner][0]
        else:
            possible = book.room(need)
            numbers = book.take(owner, need)
            assert (numbers is not None) == (possible == 1)
            if numbers is None:
                continue
            truth[owner] = numbers, need
            assert len(set(numbers)) == need.count
            for number in numbers:
                card = cards[number]
                assert not card.fault
                assert card.memory_bytes >= need.min_memory_bytes
                assert not need.models or any(is_model(card.model, model) for model in need.models)
        for number in range(len(cards)):
            tenants = [need for numbers, need in truth.values() if number in numbers]
            assert sum(need.share for need in tenants) <= 1 + 1e-9
            assert len(tenants) <= 1 or (divided and all(need.share < 1 for need in tenants))
            assert set(book.owners(number)) == {owner for owner, (numbers, _) in truth.items() if number in numbers}
        assert book.whole_count == sum(1 for number in range(len(cards)) if not book.owners(number))


@given(st.lists(devices, max_size=4), st.booleans(), needs)
def test_room_is_what_an_empty_book_gives(cards: list[Device], divided: bool, need: GpuSpec) -> None:
    book = GpuBook(cards, divided)
    given_out = 0
    while book.take(given_out, need) is not None:
        given_out += 1
    assert given_out == room(cards, need, divided) == GpuBook(cards, divided).room(need, 1000)


@given(st.floats(0.05, 0.999))
def test_no_more_tenants_than_their_shares_allow(share: float) -> None:
    assert (UNITS // units_of(GpuSpec(1, share=share))) * share <= 1 + 1e-6


def test_shared_devices_are_filled_before_whole_ones_are_broken() -> None:
    card = Device("gpu", "A100", 40 * GIB)
    book = GpuBook((card, card), True)
    assert [book.take(name, GpuSpec(1, share=0.5)) for name in ("a", "b")] == [(0,), (0,)]
    assert book.take("c", GpuSpec(1)) == (1,)


def test_a_closed_device_is_given_to_nobody() -> None:
    book = GpuBook((Device("gpu", "A100", 40 * GIB),), True)
    book.close(0)
    assert book.take("a", GpuSpec(1)) is None
    book.open(0)
    assert book.take("a", GpuSpec(1)) == (0,)


@pytest.mark.parametrize(
    ("name", "wanted", "same"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100", True),
        ("NVIDIA A100-SXM4-40GB", "a10", False),
        ("NVIDIA A10", "A10", True),
        ("NVIDIA GeForce RTX 4090", "RTX4090", True),
        ("NVIDIA GeForce RTX 4090", "4090", True),
        ("NVIDIA GeForce RTX 4060 Ti", "4060Ti", True),
        ("NVIDIA L40S", "L4", False),
        ("NVIDIA RTX A1000", "A100", False),
        ("NVIDIA H100 80GB HBM3", "H100", True),
        ("NVIDIA H100 80GB HBM3", "-", False),
    ],
)
def test_models(name: str, wanted: str, same: bool) -> None:
    assert is_model(name, wanted) is same


# ---------------------------------------------------------------- fit and plan


def node(name: str, *cards: Device, slots: int = 8, divided: bool = True) -> NodeSpec:
    return NodeSpec(
        NodeId(name), name, slots, slots, 64 * GIB, 1 << 40, "linux", ("3.11",), "1", cards, shares_gpus=divided
    )


def job(name: str, need: GpuSpec) -> JobSpec:
    blob = Blob(Digest(""), 0, b"")
    return JobSpec(JobId(name), name, JobKind.MAP, ClientId("c"), blob, resources=Resources(gpu=need))


A100 = Device("gpu", "NVIDIA A100", 40 * GIB)
T4 = Device("gpu", "Tesla T4", 16 * GIB)


def test_why_a_node_does_not_fit_is_said_in_words() -> None:
    assert misfit(job("j", GpuSpec(1, share=0.5)), node("n", A100)) is None
    words = misfit(job("j", GpuSpec(1, models=("H100",), share=0.5)), node("n", A100, T4))
    assert words == "needs 0.5 of a GPU of H100, and n has NVIDIA A100 (42.9 GB), Tesla T4 (17.2 GB)"
    broken = Device("gpu", "NVIDIA A100", 40 * GIB, fault="2.00 GB of its memory did not come free")
    words = misfit(job("j", GpuSpec(1)), node("n", broken))
    assert words is not None
    assert "out: 2.00 GB of its memory did not come free" in words


def test_parts_are_planned_as_many_as_fit() -> None:
    wants = JobDemand(job("a", GpuSpec(1, share=0.25)), 100)
    assert len(plan([wants], [NodeView(node("n", A100), {})]).changes) == 4
    assert len(plan([wants], [NodeView(node("n", A100, T4), {})]).changes) == 8
    assert len(plan([wants], [NodeView(node("n", A100, T4, divided=False), {})]).changes) == 2


def test_on_mixed_nodes_only_the_devices_that_fit_count() -> None:
    wants = JobDemand(job("a", GpuSpec(1, models=("A100",))), 100)
    assert len(plan([wants], [NodeView(node("n", A100, T4), {})]).changes) == 1


@given(
    st.lists(st.tuples(st.lists(devices, max_size=3), st.booleans()), min_size=1, max_size=3),
    st.lists(st.tuples(needs, st.integers(0, 9)), min_size=1, max_size=4),
)
def test_a_plan_never_gives_more_of_a_node_than_it_has(
    pool: list[tuple[list[Device], bool]], wanted: list[tuple[GpuSpec, int]]
) -> None:
    nodes = [node(f"n{at}", *cards, slots=4, divided=divided) for at, (cards, divided) in enumerate(pool)]
    jobs = [JobDemand(job(f"j{at}", need), want, order=at) for at, (need, want) in enumerate(wanted)]
    by_id = {demand.spec.job_id: demand.spec for demand in jobs}
    changes = plan(jobs, [NodeView(spec, {}) for spec in nodes]).changes
    for spec in nodes:
        given_here = [by_id[j] for (n, _), j in changes.items() if n == spec.node_id and j is not None]
        for one in given_here:
            assert misfit(one, spec) is None
        # Whole devices first, as they are the harder ones to place: what is left must do for the parts.
        working = sum(1 for device in spec.devices if not device.fault)
        load = sum(j.resources.gpu.count * (j.resources.gpu.share if spec.shares_gpus else 1) for j in given_here)
        assert load <= working + 1e-9


# ---------------------------------------------------------------- memory


def test_memory_that_is_back_and_memory_that_is_not() -> None:
    before = Use(24 * GIB)
    assert what_is_left(before, Use(24 * GIB)) == ""
    assert "3.22 GB of its memory" in what_is_left(before, Use(21 * GIB))
    assert what_is_left(before, Use(21 * GIB, foreign_bytes=3 * GIB)) == ""
    assert "process 7" in what_is_left(before, Use(24 * GIB, own_pids=(7,)))
    assert "does not tell" in what_is_left(before, Use(None))


def test_a_part_has_its_cap_and_a_whole_device_none() -> None:
    assert cap_bytes(A100, GpuSpec(1, share=0.5)) == 20 * GIB
    assert cap_bytes(A100, GpuSpec(1)) == 0
    assert over_cap(A100, GpuSpec(1, share=0.5), 21 * GIB) == ""
    assert "0.5 of NVIDIA A100" in over_cap(A100, GpuSpec(1, share=0.5), 23 * GIB)
    assert over_cap(A100, GpuSpec(1), 40 * GIB) == ""


def test_a_wipe_must_have_reached_nearly_all() -> None:
    assert not_wiped(24 * GIB, 24 * GIB) == ""
    assert not_wiped(23 * GIB, 24 * GIB) != ""
    assert not_wiped(0, 0) != ""
