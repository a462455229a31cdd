"""Results that are let go of while others of the same answer are read back from the store."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from fallow.coordinator import map_job
from fallow.coordinator.blob_refs import BlobRefs
from fallow.coordinator.context import Context
from fallow.coordinator.map_job import MapJob
from fallow.coordinator.questions import Questions
from fallow.coordinator.result_index import recorded_page
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.parts import ResultPage
from fallow.wire.messages import FetchResults, Results

NODE = NodeId("00000000000000aa")
PAGE_BYTES = 100


def page(index: int) -> ResultPage:
    return ResultPage(index, index + 1, index, Blob(Digest(f"{index:02}"), PAGE_BYTES, bytes([index]) * PAGE_BYTES))


class SlowStore:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answers = threading.Event()

    def read_results(self, _job_id: JobId, starts: list[int]) -> dict[int, Blob]:
        self.asked.set()
        assert self.answers.wait(60)
        return {start: page(start).page for start in starts}


async def test_all_of_an_answer_has_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_job, "KEPT_RESULT_BYTES", 2 * PAGE_BYTES)
    store, said = SlowStore(), asyncio.Queue[Any]()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as reader:
        parts: dict[str, Any] = {
            "connection": SimpleNamespace(send=lambda _subject, message, _reply="": said.put_nowait(message)),
            "session": SimpleNamespace(valid=True, shared=False),
            "store": store,
            "journal": None,
            "nodes": None,
            "load": None,
        }
        questions = Questions(loop, reader)
        context = Context(owner="o", blobs=BlobRefs(), loop=loop, reader=reader, questions=questions, **parts)
        context.node_names[NODE] = "n"
        spec = JobSpec(JobId("job-aaaaaa"), "test", JobKind.MAP, ClientId("c"), Blob(Digest("ff"), 1, b"f"))
        job = MapJob(context, spec, 1)
        job.progress.add_inputs(0, 6)

        def record(index: int) -> None:
            job.tell_recorded([recorded_page(index, page(index), NODE)], None)

        for index in range(3):
            record(index)  # the first is only in the store now
        job.fetch(FetchResults(spec.job_id, 0), "reply")
        assert await asyncio.to_thread(store.asked.wait, 60)
        for index in range(3, 6):
            record(index)  # and now all three are
        store.answers.set()
        answer = await asyncio.wait_for(said.get(), 60)
    assert isinstance(answer, Results)
    assert [found.page.data for found in answer.pages] == [page(index).page.data for index in range(3)]
