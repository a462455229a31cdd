"""`fallow top`: nodes, jobs and rates as they change; plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from msgspec import Struct

from fallow.cli.client import PoolClient, ask_pool
from fallow.cli.listings import is_active, tasks_words
from fallow.cli.show import (
    as_plain,
    bytes_words,
    count_words,
    counted,
    duration_words,
    print_json,
    progress_bar,
    sparkline,
)
from fallow.model.errors import PoolError
from fallow.model.job import JobInfo
from fallow.model.node import NodeInfo
from fallow.model.states import NodeState

if TYPE_CHECKING:
    from rich.console import RenderableType

HISTORY = 120
ENDED_SHOWN_S = 60.0
"""Jobs that ended stay in view this long."""


class Look(Struct, frozen=True):
    """What the pool said at one moment."""

    unix_s: float
    nodes: tuple[NodeInfo, ...]
    jobs: tuple[JobInfo, ...]


class Rates:
    """Tasks per second of each job, and of all, from one look to the next."""

    def __init__(self) -> None:
        self._last: tuple[float, dict[str, int]] | None = None
        self.total: deque[float] = deque(maxlen=HISTORY)
        self.by_job: dict[str, deque[float]] = {}

    def add(self, at_s: float, jobs: tuple[JobInfo, ...]) -> None:
        """Take a look in; `at_s` on a clock that does not jump."""
        done: dict[str, int] = {job.job_id: job.counts.done for job in jobs}
        if self._last is not None and at_s > self._last[0]:
            before_s, before = self._last
            rates = {
                job_id: max(0, count - before.get(job_id, 0)) / (at_s - before_s) for job_id, count in done.items()
            }
            self.total.append(sum(rates.values()))
            for job_id, rate in rates.items():
                self.by_job.setdefault(job_id, deque(maxlen=HISTORY)).append(rate)
        self._last = (at_s, done)
        self.by_job = {job_id: history for job_id, history in self.by_job.items() if job_id in done}

    def of(self, job_id: str) -> float:
        """Mean over the last five looks."""
        recent = list(self.by_job.get(job_id, ()))[-5:]
        return sum(recent) / len(recent) if recent else 0.0


async def look_at(pool: PoolClient) -> Look:
    nodes = tuple(node for node in await pool.nodes() if node.state in (NodeState.ALIVE, NodeState.DRAINING))
    jobs = await pool.jobs(50)
    now = time.time()
    shown = tuple(job for job in jobs if is_active(job) or now - job.ended_unix_s < ENDED_SHOWN_S)
    return Look(now, nodes, shown)


def run_top(interval_s: float, once: bool, as_json: bool) -> None:
    """Until Ctrl-C, or once."""
    if once:
        look = ask_pool(look_at)
        if as_json:
            print_json(_plain(look))
        else:
            _print_plain(look, Rates())
        return
    if as_json or not sys.stdout.isatty():
        ask_pool(lambda pool: _follow_plain(pool, interval_s, as_json))
    else:
        ask_pool(lambda pool: _follow_live(pool, interval_s))


def _plain(look: Look) -> dict[str, object]:
    return {"unix_s": look.unix_s, "nodes": as_plain(look.nodes), "jobs": as_plain(look.jobs)}


async def _follow_plain(pool: PoolClient, interval_s: float, as_json: bool) -> None:
    rates = Rates()
    while True:
        look = await look_at(pool)
        rates.add(time.monotonic(), look.jobs)
        if as_json:
            import json

            print(json.dumps(_plain(look)), flush=True)
        else:
            _print_plain(look, rates)
        await asyncio.sleep(interval_s)


def _print_plain(look: Look, rates: Rates) -> None:
    slots = sum(node.spec.slots for node in look.nodes)
    busy = sum(node.busy_slots for node in look.nodes)
    clock = time.strftime("%H:%M:%S", time.localtime(look.unix_s))
    rate = f", {count_words(rates.total[-1])} tasks/s" if rates.total else ""
    print(f"{clock}  {counted(len(look.nodes), 'node')}, {busy}/{slots} slots busy{rate}")
    for job in look.jobs:
        print(f"  {job.job_id}  {job.name}  {job.state}  {tasks_words(job)}  {job.counts.failed} failed", flush=True)


async def _follow_live(pool: PoolClient, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    rates = Rates()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        trouble = ""
        look = Look(time.time(), (), ())
        while True:
            try:
                look = await look_at(pool)
                trouble = ""
                rates.add(time.monotonic(), look.jobs)
            except PoolError as error:
                trouble = str(error)
            live.update(render(look, rates, pool.address.public, trouble, console.width), refresh=True)
            await asyncio.sleep(interval_s)


def render(look: Look, rates: Rates, address: str, trouble: str, width: int) -> RenderableType:
    """One screen."""
    from rich.console import Group
    from rich.text import Text

    slots = sum(node.spec.slots for node in look.nodes)
    busy = sum(node.busy_slots for node in look.nodes)
    now_rate = rates.total[-1] if rates.total else 0.0
    head = Text.assemble(
        ("fallow ", "bold green"),
        f"{address}   {counted(len(look.nodes), 'node')}   {busy}/{slots} slots busy   ",
        (f"{count_words(now_rate)} tasks/s ", "bold"),
        (sparkline(list(rates.total), max(10, min(HISTORY, width - 70))), "green"),
    )
    parts: list[RenderableType] = [head]
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    parts += [Text(""), _job_table(look, rates), Text(""), _node_table(look)]
    parts.append(Text("Ctrl-C ends this view.", style="dim"))
    return Group(*parts)


def _job_table(look: Look, rates: Rates) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", expand=True, pad_edge=False)
    for column in ("JOB", "STATE", "PROGRESS", "TASKS", "FAILED", "SLOTS", "RATE", "LEFT", ""):
        table.add_column(column, no_wrap=True)
    colours = {"failed": "red", "cancelled": "yellow", "succeeded": "green"}
    for job in look.jobs:
        rate = rates.of(job.job_id)
        left = job.total - job.counts.done
        eta = duration_words(left / rate) if is_active(job) and job.total >= 0 and rate > 0 and left else "-"
        table.add_row(
            job.name,
            Text(job.state, style=colours.get(job.state, "")),
            Text(progress_bar(job.counts.done, job.total, 20), style="cyan"),
            tasks_words(job),
            Text(str(job.counts.failed), style="red" if job.counts.failed else ""),
            str(job.slots),
            f"{count_words(rate)}/s",
            eta,
            Text(sparkline(list(rates.by_job.get(job.job_id, ())), 16), style="green"),
        )
    if not look.jobs:
        table.add_row("no jobs", *[""] * 8)
    return table


def _node_table(look: Look) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", expand=True, pad_edge=False)
    for column in ("NODE", "STATE", "BUSY", "LOAD", "MEMORY", "TASKS", "SEEN"):
        table.add_column(column, no_wrap=True)
    for node in look.nodes:
        memory = f"{bytes_words(node.memory_used_bytes)} of {bytes_words(node.spec.memory_bytes)}"
        table.add_row(
            node.spec.name,
            Text(node.state, style="yellow" if node.state == NodeState.DRAINING else "green"),
            f"{progress_bar(node.busy_slots, node.spec.slots, 10)} {node.busy_slots}/{node.spec.slots}",
            f"{node.load:.2f}",
            memory,
            count_words(node.tasks_done),
            f"{duration_words(look.unix_s - node.seen_unix_s)} ago",
        )
    if not look.nodes:
        table.add_row("no nodes", *[""] * 6)
    return table
