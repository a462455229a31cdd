"""The room on the blobs' disk: garbage goes first, inputs stay out next, results come last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fallow.core.room import GARBAGE_KEPT_S, LOOK_LEAST_S, LOOK_MOST_S, ResultBytes, Room, lease_share

MB = 1 << 20
DISKS = st.integers(8 * MB, 1 << 46)


@given(total=DISKS, share=st.floats(0, 1), size=st.integers(0, 1 << 40))
def test_inputs_stay_out_before_results_do(total: int, share: float, size: int) -> None:
    room = Room(int(total * share), total)
    if room.takes_inputs(size):
        after = Room(room.free - size, total)
        assert after.result_tasks(1.0, 0.0) > 0, "inputs were let in, and no result has room"
        assert room.could_take_inputs(size)
    if room.result_tasks(1.0, 0.0) == 0:
        assert room.is_short, "results wait while garbage is kept"
        assert not room.takes_inputs(0)


@given(
    total=DISKS,
    share=st.floats(0, 1),
    size=st.integers(1, 1 << 34),
    slots=st.integers(1, 5000),
    promised=st.integers(0, 1 << 40),
)
def test_what_is_leased_has_room(total: int, share: float, size: int, slots: int, promised: int) -> None:
    room = Room(int(total * share), total)
    tasks = room.result_tasks(size, promised)
    assert not tasks or tasks * size + promised <= room.free
    assert Room(room.free // 2, total).result_tasks(size, promised) <= tasks
    assert 1 <= lease_share(tasks, slots) <= max(1, tasks)


@given(total=DISKS, share=st.floats(0, 1), least_s=st.floats(0.1, 60))
def test_garbage_is_kept_no_shorter_than_it_may_be_needed(total: int, share: float, least_s: float) -> None:
    room = Room(int(total * share), total)
    assert room.garbage_kept_s(least_s) >= least_s
    if not room.is_short:
        assert room.garbage_kept_s(least_s) >= GARBAGE_KEPT_S
    assert LOOK_LEAST_S <= room.look_again_s <= LOOK_MOST_S


def test_a_large_disk_and_a_small_one() -> None:
    large, small = Room(100 << 30, 1 << 40), Room(120 * MB, 256 * MB)
    assert not large.is_short
    assert small.is_short
    assert Room(5 << 30, 1 << 40).takes_inputs(4 << 30)
    assert not Room(65 * MB, 1 << 40).takes_inputs(2 * MB)
    assert not Room(256 * MB, 256 * MB).could_take_inputs(200 * MB)
    assert small.result_tasks(MB, 8 * MB) == 80
    assert small.result_tasks(90 * MB, 0.0) == 0
    assert lease_share(80, 2) == 20


def test_what_results_take_follows_the_last_ones() -> None:
    size = ResultBytes()
    assert size.per_task == 0.0
    size.note(1, 0)
    for _ in range(40):
        size.note(10, 10 * MB)
    assert 0.95 * MB < size.per_task <= MB
    for _ in range(100):
        size.note(10, 0)
    assert size.per_task < 100
