"""The plan: fair, sticky, within what nodes can do, and in words where they cannot."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fallow.core.demand import MAP_WAITS_S, served_in_turn
from fallow.core.matching import JobDemand, NodeView, plan, too_large
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, EnvSpec, GpuSpec, JobKind, JobSpec, Resources
from fallow.model.node import Device, NodeSpec


def node(name: str, slots: int = 2, devices: tuple[Device, ...] = (), pythons: tuple[str, ...] = ("3.11",)) -> NodeSpec:
    return NodeSpec(NodeId(name), name, slots, slots, 8 << 30, 1 << 40, "linux", pythons, "0.1", devices)


def job(name: str, want: int = 100, served: float = 0.0, order: int = 0, **fields: object) -> JobDemand:
    resources = fields.pop("resources", Resources())
    spec = JobSpec(
        JobId(name),
        name,
        JobKind.MAP,
        ClientId("c"),
        Blob(Digest(""), 0, b""),
        resources=resources,  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )
    return JobDemand(spec, want, served, order)


def shares(jobs: list[JobDemand], nodes: list[NodeView]) -> dict[str, int]:
    return {str(k): v for k, v in plan(jobs, nodes).shares.items()}


def test_slots_are_shared_and_what_one_cannot_use_goes_to_the_others() -> None:
    views = [NodeView(node(f"n{i}"), {}) for i in range(4)]
    assert shares([job("a"), job("b", order=1)], views) == {"a": 4, "b": 4}
    assert shares([job("a", want=1), job("b", order=1)], views) == {"a": 1, "b": 7}


def test_nothing_moves_without_a_need() -> None:
    views = [NodeView(node("n"), {0: JobId("a"), 1: JobId("a")})]
    assert plan([job("a")], views).changes == {}
    assert plan([job("a", want=0)], views).changes == {}
    changes = plan([job("a", want=0), job("b", order=1)], views).changes
    assert set(changes.values()) == {"b"}
    assert len(changes) == 2


def test_more_jobs_than_slots_take_turns() -> None:
    view = NodeView(node("n", 1), {0: JobId("a")})
    assert plan([job("a", served=5.0), job("b", served=1.0, order=1)], [view]).changes == {("n", 0): "b"}


def test_a_call_that_waits_comes_before_new_jobs_and_so_does_what_has_waited_for_long() -> None:
    view = NodeView(node("n", 1), {0: JobId("a")})

    def winner(kind: JobKind, waits_s: float) -> JobId | None:
        turn = served_in_turn(kind, waits_s, 9.0)
        jobs = [job("a", served=5.0), job("b", order=1), job("c", served=turn, order=2)]
        return plan(jobs, [view]).changes["n", 0]  # type: ignore[index]

    assert winner(JobKind.CALLS, 0.0) == "c"
    assert winner(JobKind.CALLS, -1.0) == "b", "it does not wait"
    assert winner(JobKind.MAP, MAP_WAITS_S / 2) == "b"
    assert winner(JobKind.MAP, MAP_WAITS_S) == "c"
    assert served_in_turn(JobKind.CALLS, 0.0, 1.0) < served_in_turn(JobKind.MAP, MAP_WAITS_S, 2.0), "these take turns"


def test_a_draining_node_gets_nothing_new() -> None:
    views = [NodeView(node("n"), {}, open=False), NodeView(node("m"), {})]
    assert all(key[0] == "m" for key in plan([job("a")], views).changes)


def test_paused_slots_lose_what_they_have_and_get_nothing() -> None:
    views = [NodeView(node("n", 4), {1: JobId("a"), 2: JobId("a")}, paused=frozenset({1, 3})), NodeView(node("m"), {})]
    planned = plan([job("a", want=4)], views)
    assert planned.changes == {("n", 0): "a", ("n", 1): None, ("m", 0): "a", ("m", 1): "a"}
    assert planned.shares == {"a": 4}
    assert plan([job("a", resources=Resources(cpu=2))], views).changes.keys() & {("n", 0), ("n", 2)} == {("n", 2)}
    assert shares([job("a"), job("b", order=1)], views) == {"a": 2, "b": 2}


def test_a_job_whose_device_is_withheld_goes_elsewhere() -> None:
    card = Device("cuda", "NVIDIA RTX 4090", 24 << 30)
    used = Device("cuda", "NVIDIA RTX 4090", 24 << 30, fault="its owner uses it")
    needs = job("a", want=1, resources=Resources(gpu=GpuSpec(count=1)))
    views = [NodeView(node("n", 2, (used,)), {0: JobId("a")}), NodeView(node("m", 2, (card,)), {})]
    assert set(plan([needs], views).changes.items()) == {(("n", 0), None), (("m", 0), "a")}
    assert plan([needs], views[:1]).changes == {("n", 0): None}


def test_cpu_takes_adjacent_slots_and_max_nodes_holds() -> None:
    views = [NodeView(node(f"n{i}", 4), {}) for i in range(3)]
    changes = plan([job("a", resources=Resources(cpu=2))], views).changes
    assert sorted(slot for _, slot in changes) == [0, 0, 0, 2, 2, 2]
    assert len({key[0] for key in plan([job("a", max_nodes=1)], views).changes}) == 1


def test_gpu_jobs_go_where_gpus_are() -> None:
    card = Device("cuda", "NVIDIA RTX 4090", 24 << 30)
    views = [NodeView(node("plain", 8), {}), NodeView(node("gpu", 8, (card,)), {})]
    wants = Resources(gpu=GpuSpec(1, 20 << 30, ("4090",)))
    assert set(plan([job("a", resources=wants)], views).changes) == {("gpu", 0)}


def test_why_no_node_can_run_it() -> None:
    nodes = [node("n"), node("m")]
    words = too_large(job("a", resources=Resources(memory_bytes=64 << 30)).spec, nodes)
    assert words is not None
    assert "68.7 GB of memory" in words
    assert "n has 8.59 GB" in words
    words = too_large(job("a", env=EnvSpec(python="3.9")).spec, nodes)
    assert words is not None
    assert "needs Python 3.9" in words
    assert too_large(job("a").spec, nodes) is None
    assert too_large(job("a", resources=Resources(cpu=64)).spec, []) is None


@settings(deadline=None, max_examples=60)
@given(
    wants=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3), st.floats(0, 100)), max_size=8),
    sizes=st.lists(st.integers(1, 6), max_size=6),
)
def test_plans_are_sound_and_settle(wants: list[tuple[int, int, float]], sizes: list[int]) -> None:
    jobs = [job(f"j{i}", want, served, i, resources=Resources(cpu=cpu)) for i, (want, cpu, served) in enumerate(wants)]
    views = [NodeView(node(f"n{i}", size), {}) for i, size in enumerate(sizes)]
    by_id = {j.spec.job_id: j for j in jobs}
    first = plan(jobs, views)
    for view in views:
        taken: list[int] = []
        for slot in range(view.spec.slots):
            job_id = first.changes.get((view.spec.node_id, slot))
            if job_id is not None:
                taken += range(slot, slot + by_id[job_id].spec.resources.cpu)
        assert len(taken) == len(set(taken)), "two jobs on one slot"
        assert all(slot < view.spec.slots for slot in taken)
    assert all(count <= by_id[job_id].want for job_id, count in first.shares.items())
    for view in views:
        view.assigned = {s: first.changes.get((view.spec.node_id, s)) for s in range(view.spec.slots)}
    assert plan(jobs, views).changes == {}, "the same snapshot gives another plan"


def test_a_device_that_is_withheld_costs_no_more_jobs_than_it_must() -> None:
    large, small = Device("cuda", "NVIDIA A100", 80 << 30), Device("cuda", "Tesla T4", 16 << 30)
    first = job("a", want=1, resources=Resources(gpu=GpuSpec(count=1)))
    second = job("b", want=1, order=1, resources=Resources(gpu=GpuSpec(count=1, models=("T4",))))
    assigned = {0: JobId("a"), 1: JobId("b")}
    assert plan([first, second], [NodeView(node("n", 2, (large, small)), assigned)]).changes == {}
    used = Device("cuda", "NVIDIA A100", 80 << 30, fault="its owner uses it")
    assert plan([first, second], [NodeView(node("n", 2, (used, small)), assigned)]).changes == {("n", 1): None}
