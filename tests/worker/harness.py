"""A real zygote and a real worker, with callbacks that record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from fallow.agent.worker_api import OutputLine, Report, RunOrder
from fallow.agent.worker_process import Process
from fallow.agent.zygote import Zygote, start_zygote
from fallow.model.ids import ClientId, Digest, JobId, Token
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.wire.code import dump_function
from fallow.wire.messages import Death, InputPage
from fallow.wire.page import decode_page, encode_inputs

WITHIN_S = 60.0


class Recorder:
    """WorkerCallbacks that keep everything."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lines: list[OutputLine] = []
        self.deaths: list[tuple[Token | None, Death]] = []
        self.asks: list[tuple[str, bytes]] = []
        self.answer: Callable[[str, bytes], bytes] = lambda kind, body: b""
        self.changed = asyncio.Event()

    def reported(self, report: Report) -> None:
        self.reports.append(report)
        self.changed.set()

    def printed(self, lines: list[OutputLine]) -> None:
        self.lines.extend(lines)
        self.changed.set()

    def died(self, token: Token | None, death: Death) -> None:
        self.deaths.append((token, death))
        self.changed.set()

    def asked(self, kind: str, body: bytes, answer: Callable[[bytes], None]) -> None:
        self.asks.append((kind, body))
        answer(self.answer(kind, body))
        self.changed.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def ended(self, token: Token) -> list[Report]:
        """All reports of an order, once it has ended."""
        await self.until(lambda: any(r.token == token and r.ended for r in self.reports) or self.deaths)
        assert not self.deaths, self.deaths
        return [report for report in self.reports if report.token == token]

    async def death(self) -> Death:
        await self.until(lambda: self.deaths)
        return self.deaths[0][1]


def results_of(reports: Iterable[Report]) -> dict[int, object]:
    """Every result by index (of a reduced range: by its start)."""
    found: dict[int, object] = {}
    for report in reports:
        for page in report.results:
            data = page.page.data
            if data is None:
                data = Path(report.files[page.page.digest]).read_bytes()
            items = decode_page(data)
            if report.reduced:
                assert len(items) == 1
                found[page.start] = items[0]
                continue
            for index in range(page.start, page.stop):
                assert index not in found
                found[index] = items[index - page.page_start]
    return found


def is_alive(pid: int) -> bool:
    """It runs, and is not merely waiting to be reaped."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Bench:
    """One worker and the means to give it orders."""

    def __init__(self, zygote: Zygote, worker: Process, recorder: Recorder) -> None:
        self.zygote = zygote
        self.worker = worker
        self.recorder = recorder
        self._serial = 0

    def spec(self, name: str = "a", **settings: Any) -> JobSpec:
        blob = Blob(Digest("0" * 64), 0)
        return JobSpec(JobId(f"job-{name}"), name, JobKind.MAP, ClientId("client-x"), blob, **settings)

    def run(
        self,
        fn: Callable[..., Any],
        items: Any,
        *,
        start: int = 0,
        stop: int | None = None,
        budget_s: float = 60.0,
        name: str = "a",
        spec: JobSpec | None = None,
        attempt: int = 0,
        page_starts: tuple[int, ...] = (0,),
        paths: dict[int, str] | None = None,
        before: Callable[[], None] = lambda: None,
        **payload: Any,
    ) -> Token:
        """Begin an order over `items`, cut into pages at `page_starts`."""
        self._serial += 1
        token = (1, self._serial)
        pages = []
        for first, last in zip(page_starts, (*page_starts[1:], len(items)), strict=True):
            data = b"".join(encode_inputs(items[first:last]))
            inline = None if paths and first in paths else data
            if paths and first in paths:
                Path(paths[first]).write_bytes(data)
            pages.append(InputPage(first, last, Blob(Digest("1" * 64), len(data), inline)))
        order = RunOrder(
            token, start, len(items) if stop is None else stop, budget_s, tuple(pages), paths or {}, attempt=attempt
        )
        spec = spec or self.spec(name)
        function = None if self.worker.has_loaded(spec.job_id) else dump_function(fn, **payload)
        before()
        self.worker.run(spec, function, order)
        return token

    async def until_index(self, token: Token, index: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.worker.progress()[:2] != (token, index):
                await asyncio.sleep(0.005)

    async def until_gone(self, pids: Iterable[int]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while any(is_alive(pid) for pid in pids):
                await asyncio.sleep(0.01)

    async def map(self, fn: Callable[..., Any], items: Any, **settings: Any) -> list[object]:
        """Run to the end; results in order."""
        reports = await self.recorder.ended(self.run(fn, items, **settings))
        return [result for _, result in sorted(results_of(reports).items())]


@asynccontextmanager
async def open_bench(tmp_path: Path, **settings: Any) -> AsyncIterator[Bench]:
    zygote = await start_zygote(scratch=tmp_path / "scratch")
    try:
        recorder = Recorder()
        yield Bench(zygote, await zygote.start_worker(0, recorder, **settings), recorder)
    finally:
        await zygote.close()
