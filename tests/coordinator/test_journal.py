"""Group commit: what nobody waits for is gathered, and goes with whatever somebody does wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from fallow.coordinator.journal import GATHER_OPS, Gathering, Journal
from fallow.store.open import open_store
from fallow.store.protocol import CreateJob, Op, PutInputPage, Store
from tests.store.conformance import give, job_id, spec


class Counted:
    """A real store, and the sizes of the commits that it got."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sizes: list[int] = []

    def commit(self, ops: Sequence[Op]) -> None:
        self.sizes.append(len(ops))
        self.store.commit(ops)


async def test_what_may_wait_is_gathered(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    counted, job = Counted(store), job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    journal = Journal(counted, loop, lambda lost: None, gathering=Gathering(1000.0, 100.0))  # type: ignore[arg-type]
    start = 0

    def pages(count: int) -> list[PutInputPage]:
        nonlocal start
        start += count
        return [give(job, at, at + 1) for at in range(start - count, start)]

    async def written(ops: Sequence[Op], may_wait: bool) -> None:
        done = asyncio.Event()
        journal.append(ops, done.set, may_wait=may_wait)
        async with asyncio.timeout(60):
            await done.wait()

    try:
        await written(pages(1), may_wait=True)  # few changes: at once
        journal._gathering = Gathering(1000.0, 0.0)  # these count as many
        counted.sizes.clear()
        for _ in range(3):
            journal.append(pages(1), may_wait=True)
        await written(pages(1), may_wait=False)
        assert counted.sizes == [4], "they go with what somebody waits for"
        for _ in range(GATHER_OPS - 1):
            journal.append(pages(1), may_wait=True)
        await written(pages(1), may_wait=True)
        assert counted.sizes == [4, GATHER_OPS], "or when there are enough"
        journal.append(pages(1), may_wait=True)
    finally:
        journal.close()
    assert sum(counted.sizes) == 4 + GATHER_OPS + 1, "or at the end"
    assert len(store.input_pages(job)) == start
    store.close()


async def test_what_may_wait_for_a_time_goes_with_others_or_when_it_is_over(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    counted, job = Counted(store), job_id()
    store.commit([CreateJob(spec(job), "me", 1.0)])
    journal = Journal(counted, loop, lambda lost: None)  # type: ignore[arg-type]
    start = 0

    def page() -> list[PutInputPage]:
        nonlocal start
        start += 1
        return [give(job, start - 1, start)]

    async def written(within_s: float, may_wait: bool = False) -> None:
        done = asyncio.Event()
        journal.append(page(), done.set, within_s=within_s, may_wait=may_wait)
        async with asyncio.timeout(60):
            await done.wait()

    try:
        for _ in range(3):
            journal.append(page(), within_s=3600.0)
        await written(0.0)
        assert counted.sizes == [4], "they go with what may not wait, in order"
        for _ in range(GATHER_OPS - 1):
            journal.append(page(), within_s=3600.0)
        await written(3600.0)
        assert counted.sizes == [4, GATHER_OPS], "or when there are enough"
        journal.append(page(), within_s=3600.0)
        await written(0.01)
        assert counted.sizes == [4, GATHER_OPS, 2], "or when the most impatient wants it"
        journal.append(page(), within_s=3600.0)
        await written(0.0, may_wait=True)
        assert counted.sizes == [4, GATHER_OPS, 2, 2], "or with what might wait, but need not"
        journal.append(page(), within_s=3600.0)
    finally:
        journal.close()
    assert sum(counted.sizes) == start, "or at the end"
    assert len(store.input_pages(job)) == start
    store.close()
