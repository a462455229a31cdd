"""Inputs that only the store has are read once for all leases that want them, and let go again within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fallow.coordinator.input_index import InputIndex
from fallow.coordinator.stored_inputs import StoredInputs
from fallow.model.ids import JobId
from fallow.model.job import Blob
from fallow.model.parts import InputPage
from fallow.store.open import open_store
from fallow.store.protocol import CreateJob, Store, StoreUnavailable
from tests.store.conformance import give, inline, job_id, spec

PAGES = 4


class Counted:
    """A real store, and what was read of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reads: list[tuple[int, ...]] = []
        self.fails = False

    def read_input(self, job: JobId, starts: Sequence[int]) -> dict[int, Blob]:
        self.reads.append(tuple(starts))
        if self.fails:
            raise StoreUnavailable("it is away")
        return self.store.read_input(job, starts)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[tuple[Counted, JobId]]:
    """A store with a job of PAGES pages of ten tasks."""
    store, job = open_store(f"sqlite:///{tmp_path}/store.sqlite"), job_id()
    store.commit([CreateJob(spec(job), "me", 1.0), *(give(job, 10 * at, 10 * at + 10) for at in range(PAGES))])
    yield Counted(store), job
    store.close()


def taken_over(counted: Counted, job: JobId, again_bytes: int = 1 << 20) -> InputIndex:
    """What a new owner knows of the job's inputs."""
    index = InputIndex(again_bytes=again_bytes)
    for row in counted.store.input_pages(job):
        index.add(InputPage(row.start, row.stop, Blob(row.digest, row.size)), in_store=row.inline)  # type: ignore[arg-type]
    return index


async def test_many_leases_that_want_one_page_cost_one_look_into_the_store(filled: tuple[Counted, JobId]) -> None:
    counted, job = filled
    index = taken_over(counted, job)
    with ThreadPoolExecutor(1) as reader:
        context: Any = SimpleNamespace(loop=asyncio.get_running_loop(), reader=reader, store=counted)
        inputs = StoredInputs(context, job, index)

        async def fill(start: int, stop: int) -> Sequence[InputPage]:
            got: asyncio.Future[Sequence[InputPage]] = asyncio.get_running_loop().create_future()
            inputs.fill(index.covering(start, stop), got.set_result)
            async with asyncio.timeout(60):
                return await got

        leases = await asyncio.gather(*(fill(at, at + 1) for at in range(10)))
        assert counted.reads == [(0,)]
        assert {page.page.data for pages in leases for page in pages} == {inline("input 0").data}
        (page,) = await fill(3, 7)
        assert (page.page.data, counted.reads) == (inline("input 0").data, [(0,)]), "the next ones find it here"
        both = await fill(5, 15)
        assert [page.page.data for page in both] == [inline("input 0").data, inline("input 10").data]
        assert counted.reads == [(0,), (10,)]

        counted.fails = True
        lost: list[Sequence[InputPage]] = []
        inputs.fill(index.covering(20, 21), lost.append)
        await asyncio.get_running_loop().run_in_executor(reader, lambda: None)
        await asyncio.sleep(0)
        counted.fails = False
        (page,) = await fill(20, 21)
        assert page.page.data == inline("input 20").data
        assert lost == [], "nobody gets a page without its bytes"


def test_of_what_was_read_again_only_so_much_is_kept() -> None:
    index, size = InputIndex(again_bytes=25), 10
    for at in range(PAGES):
        index.add(InputPage(at, at + 1, Blob(inline(f"{at}").digest, size)), in_store=True)

    def kept() -> list[int]:
        return [page.start for page in index.pages() if page.page.data is not None]

    for at in range(PAGES):
        index.put_back(at, Blob(inline(f"{at}").digest, size, bytes(size)))
    assert kept() == [2, 3], "the last ones"
    assert [at for at in range(PAGES) if index.is_let_go(at)] == [0, 1]
    index.put_back(3, Blob(inline("3").digest, size, bytes(size)))
    assert kept() == [2, 3], "one that is here is not counted twice"
    index.drop_below(3)
    index.put_back(1, Blob(inline("1").digest, size, bytes(size)))
    assert kept() == [3], "what is over does not come back"
    index.add(InputPage(PAGES, PAGES + 1, Blob(inline("4").digest, size)), in_store=True)
    index.put_back(PAGES, Blob(inline("4").digest, size, bytes(size)))
    assert kept() == [3, 4], "and takes no room"


def test_new_pages_push_out_old_ones_whether_or_not_those_were_read_again() -> None:
    index, data = InputIndex(keep_bytes=25, again_bytes=100), bytes(10)
    for at in range(3):
        index.add(InputPage(at, at + 1, Blob(inline(f"{at}").digest, 10, data)))
    assert index.is_let_go(0)
    index.put_back(0, Blob(inline("0").digest, 10, data))
    assert not index.is_let_go(0)
    for at in range(3, 6):
        index.add(InputPage(at, at + 1, Blob(inline(f"{at}").digest, 10, data)))
    assert [page.start for page in index.pages() if page.page.data is not None] == [0, 4, 5]
    index.drop_below(6)
    assert len(index) == 0
