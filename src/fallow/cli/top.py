"""`fallow top`: nodes, jobs and rates as they change; plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
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
from fallow.core.terminal import name_words
from fallow.model.errors import PoolError
from fallow.model.job import JobInfo
from fallow.model.node import NodeInfo
from fallow.model.states import NodeState
from fallow.sdk.progress import is_screen

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

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
    if as_json or not is_screen(sys.stdout):
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
        print(
            f"  {job.job_id}  {name_words(job.name)}  {job.state}  {tasks_words(job)}  {job.counts.failed} failed",
            flush=True,
        )


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
            live.update(render(look, rates, pool.address.public, trouble, *console.size), refresh=True)
            await asyncio.sleep(interval_s)


def render(look: Look, rates: Rates, address: str, trouble: str, width: int, height: int) -> RenderableType:
    """One screen: columns and rows as far as there is room, those first without which the others say little."""
    from rich.console import Group
    from rich.text import Text

    slots = sum(node.spec.slots for node in look.nodes)
    busy = sum(node.busy_slots for node in look.nodes)
    now_rate = rates.total[-1] if rates.total else 0.0
    head = Text.assemble(
        ("fallow ", "bold green"),
        f"{address}   {counted(len(look.nodes), 'node')}   {busy}/{slots} slots busy   ",
        (f"{count_words(now_rate)} tasks/s ", "bold"),
    )
    if width - head.cell_len >= 10:
        head.append(sparkline(list(rates.total), min(HISTORY, width - head.cell_len)), "green")
    parts: list[RenderableType] = [head]
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    rows = max(2, height - 7 - len(trouble) // max(1, width) - bool(trouble))
    nodes = min(len(look.nodes), max(rows // 3, rows - len(look.jobs)))
    parts += [Text(""), _job_table(look, rates, width, rows - nodes), Text(""), _node_table(look, width, nodes)]
    parts.append(Text("Ctrl-C ends this view.", style="dim"))
    return Group(*parts)


class Column(Struct, frozen=True):
    """A column of a live table. `rank`: where there is no room for all, the highest goes first."""

    title: str
    rank: int


NAME_CELLS = 12
"""The first column is shortened as far as this before another one is left out."""
GAP = 2


def chosen_columns(columns: Sequence[Column], cells: Sequence[int], width: int) -> tuple[list[int], int]:
    """Which of the columns, whose cells are so wide, have room; and the cells that are left for the first of them."""
    kept = list(range(len(columns)))

    def left() -> int:
        return width - sum(cells[index] + GAP for index in kept[1:])

    while left() < min(cells[0], NAME_CELLS) and len(kept) > 1:
        kept.remove(max(kept[1:], key=lambda index: columns[index].rank))
    return kept, max(1, min(cells[0], left()))


def _table(columns: Sequence[Column], rows: Sequence[Sequence[Text]], empty: str, width: int, limit: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    cells = [max(len(column.title), *(row[i].cell_len for row in rows), 0) for i, column in enumerate(columns)]
    kept, name_cells = chosen_columns(columns, cells, width)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    for index in kept:
        cap = name_cells if index == 0 else cells[index]
        table.add_column(columns[index].title, no_wrap=True, overflow="ellipsis", min_width=cap, max_width=cap)
    shown = rows if len(rows) <= limit else rows[: limit - 1]
    for row in shown:
        table.add_row(*(row[index] for index in kept))
    if not rows:
        table.add_row(Text(empty))
    elif len(shown) < len(rows):
        table.add_row(Text(f"and {len(rows) - len(shown)} more", style="dim"))
    return table


JOB_COLUMNS = (
    Column("JOB", 0), Column("STATE", 2), Column("PROGRESS", 6), Column("TASKS", 1), Column("FAILED", 4),
    Column("SLOTS", 7), Column("RATE", 5), Column("LEFT", 3), Column("", 8),
)  # fmt: skip


def _job_table(look: Look, rates: Rates, width: int, limit: int) -> RenderableType:
    from rich.text import Text

    colours = {"failed": "red", "cancelled": "yellow", "succeeded": "green"}
    rows = []
    # What runs stands first, where not all have room.
    for job in sorted(look.jobs, key=lambda job: not is_active(job)):
        rate = rates.of(job.job_id)
        left = job.total - job.counts.done
        eta = duration_words(left / rate) if is_active(job) and job.total >= 0 and rate > 0 and left else "-"
        rows.append(
            (
                Text(name_words(job.name)),
                Text(job.state, style=colours.get(job.state, "")),
                Text(progress_bar(job.counts.done, job.total, 20 if width > 100 else 10), style="cyan"),
                Text(tasks_words(job)),
                Text(str(job.counts.failed), style="red" if job.counts.failed else ""),
                Text(str(job.slots)),
                Text(f"{count_words(rate)}/s" if is_active(job) else "-"),
                Text(eta),
                Text(sparkline(list(rates.by_job.get(job.job_id, ())), 16).ljust(16), style="green"),
            )
        )
    return _table(JOB_COLUMNS, rows, "no jobs", width, limit)


NODE_COLUMNS = (
    Column("NODE", 0), Column("STATE", 2), Column("BUSY", 1), Column("LOAD", 4), Column("MEMORY", 6),
    Column("TASKS", 3), Column("SEEN", 5),
)  # fmt: skip


def _node_table(look: Look, width: int, limit: int) -> RenderableType:
    from rich.text import Text

    rows = []
    for node in look.nodes:
        memory = f"{bytes_words(node.memory_used_bytes)} of {bytes_words(node.spec.memory_bytes)}"
        busy = f"{node.busy_slots}/{node.spec.slots}"
        rows.append(
            (
                Text(name_words(node.spec.name)),
                Text(node.state, style="yellow" if node.state == NodeState.DRAINING else "green"),
                Text(f"{progress_bar(node.busy_slots, node.spec.slots, 10)} {busy}" if width > 60 else busy),
                Text(f"{node.load:.2f}"),
                Text(memory),
                Text(count_words(node.tasks_done)),
                Text(f"{duration_words(look.unix_s - node.seen_unix_s)} ago"),
            )
        )
    return _table(NODE_COLUMNS, rows, "no nodes", width, limit)
