"""Progress of a map: a bar in a terminal or a notebook, sparse plain lines elsewhere. FALLOW_PROGRESS=0 switches it
off, 1 on at once. It runs in a thread of its own, so that neither results nor the user's code wait for it."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from fallow.core.terminal import name_words
from fallow.model.job import JobInfo

if TYPE_CHECKING:
    from fallow.sdk.mapjob import MapJob

Style = Literal["bar", "cell", "lines"]
"""In a terminal, in the cell of a notebook, and elsewhere."""

BAR_AFTER_S = 1.0
BAR_EVERY_S = 0.25
ASK_EVERY_S = 1.0
BAR_CELLS = 40
NAME_CELLS = 12
"""A name is shortened as far as this before something is left out."""
LINES_AFTER_S = 10.0
LINES_EVERY_S = (10.0, 30.0, 60.0)


class Progress:
    """Shows one job until it is closed."""

    def __init__(self, job: MapJob, *, style: Style, after_s: float) -> None:
        self._job = job
        self._style = style
        self._after_s = after_s
        self._closed = threading.Event()
        self._began = time.monotonic()
        self._asked = 0.0
        # A notebook's cell is part of the context: it gets what is shown, also when another cell runs meanwhile.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="fallow-progress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show the final state and stop. From any thread; does not wait."""
        self._closed.set()

    def join(self, timeout_s: float = 2.0) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        if self._closed.wait(self._after_s):
            return
        with contextlib.suppress(Exception):
            if self._style == "bar":
                self._run_bar()
            elif self._style == "cell":
                self._run_cell()
            else:
                self._run_lines()

    # ------------------------------------------------------------ what is known

    def _info(self) -> JobInfo | None:
        """As of the last answer about the job; asked for where results do not bring it."""
        now = time.monotonic()
        if not self._closed.is_set() and now - self._asked > ASK_EVERY_S:
            self._asked = now
            with contextlib.suppress(Exception):
                future = self._job.client.thread.submit(self._ask())
                try:
                    future.result(ASK_EVERY_S)
                finally:
                    future.cancel()
        return self._job.info

    async def _ask(self) -> None:
        from fallow.wire import subjects
        from fallow.wire.messages import GetJob, JobStatus

        reply = await self._job.client.transport.request(
            subjects.job(self._job.job_id), GetJob(self._job.job_id), ASK_EVERY_S
        )
        if isinstance(reply, JobStatus):
            self._job.info = reply.info

    def _total(self) -> int:
        if self._job.total >= 0:
            return self._job.total
        return self._job.spec.total_hint

    # ------------------------------------------------------------ showing

    def _run_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        gauge = BarColumn()
        columns: tuple[Any, ...] = (
            TextColumn("{task.description}", style="bold", markup=False),
            gauge,
            TextColumn("{task.fields[story]}", style="", markup=False),
        )
        # Where stdout goes to a file, it must go on doing so while the bar is shown.
        shared = sys.stdout is not None and sys.stdout.isatty()
        with Bar(*columns, console=console, auto_refresh=False, redirect_stdout=shared) as bar:
            name, total = name_words(self._job.spec.name), self._total()
            task = bar.add_task("", total=total if total >= 0 else None, story="")
            while True:
                closed = self._closed.wait(BAR_EVERY_S)
                info, total = self._info(), self._total()
                if info is not None:
                    done = self._done(info, closed)
                    count = f"{done:,}/{total:,}" if total >= 0 else f"{done:,}"
                    shown, gauge.bar_width, story = fitted(console.width, name, count, self._story(info, done)[1:])
                    bar.update(
                        task, description=shown, completed=done, total=total if total >= 0 else None, story=story
                    )
                    bar.refresh()
                if closed:
                    return

    def _run_cell(self) -> None:
        from fallow.sdk.notebook import Bar

        bar = Bar()
        while True:
            closed = self._closed.wait(BAR_EVERY_S)
            info, total = self._info(), self._total()
            if info is not None:
                done = self._done(info, closed)
                bar.show(self._job.spec.name, done, total, ", ".join(self._story(info, done)))
            if closed:
                return

    def _done(self, info: JobInfo, closed: bool) -> int:
        total = self._total()
        return total if closed and total >= 0 and _ended_well(self._job, info) else info.counts.done

    def _run_lines(self) -> None:
        waits = iter(LINES_EVERY_S)
        every = next(waits)
        while True:
            info = self._info()
            if info is not None:
                line = ", ".join(self._story(info, info.counts.done))
                print(f"fallow: {name_words(self._job.spec.name)}: {line}", file=sys.stderr, flush=True)
            if self._closed.wait(every):
                return
            every = next(waits, every)

    def _story(self, info: JobInfo, done: int) -> list[str]:
        """'123 of 1,000 tasks', '50/s', '18 s left', '2 failed', '3 nodes'"""
        total, seconds = self._total(), time.monotonic() - self._began
        rate = done / seconds if seconds > 0 else 0.0
        parts = [f"{done:,} of {total:,} tasks" if total >= 0 else f"{done:,} tasks", f"{_short(rate)}/s"]
        if total > done and rate > 0:
            parts.append(f"{duration((total - done) / rate)} left")
        if info.counts.failed:
            parts.append(f"{info.counts.failed:,} failed")
        if info.counts.retried:
            parts.append(f"{info.counts.retried:,} run again")
        if nodes := len(info.nodes) or info.node_count:
            parts.append(f"{nodes} node{'s' if nodes != 1 else ''}")
        elif not done:  # nodes are counted by what they have done
            parts.append(f"{info.slots} slot{'s' if info.slots != 1 else ''}" if info.slots else "no slot yet")
        return parts


def fitted(width: int, name: str, count: str, parts: list[str]) -> tuple[str, int, str]:
    """What has room in a line of so many cells: the name, the bar's cells, and the rest in words.

    The count goes last; the bar and the name get shorter first, then parts are left out from the end."""
    for end in range(len(parts), -1, -1):
        story = " · ".join([count, *parts[:end]])
        room = width - len(story) - 2
        if room >= min(len(name), NAME_CELLS) or not end:
            break
    room = max(0, room)
    bar = min(BAR_CELLS, room - min(len(name), NAME_CELLS * 2))
    bar = bar if bar >= 4 else 0
    shown = name if len(name) <= room - bar else f"{name[: max(0, room - bar - 1)]}…"
    return shown, bar, story


def _ended_well(job: MapJob, info: JobInfo) -> bool:
    return info.state == "succeeded" or info.counts.done >= job.total >= 0


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def duration(seconds: float) -> str:
    """'42 s', '3 min 20 s', '2 h 5 min'"""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def is_screen(stream: Any) -> bool:
    """Whether bars and live views can be drawn on it: a terminal that moves its cursor."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except (AttributeError, ValueError):
        return False


def wanted(nested: bool) -> tuple[Style, float] | None:
    """(how, seconds before it shows) for a map that starts now, or None for no progress at all."""
    setting = os.environ.get("FALLOW_PROGRESS", "").strip().lower()
    if nested or setting in ("0", "off", "no", "false"):
        return None
    forced = setting in ("1", "on", "yes", "true")
    if "IPython" in sys.modules:
        from fallow.sdk.notebook import is_notebook

        if is_notebook():
            return "cell", 0.0 if forced else BAR_AFTER_S
    if is_screen(sys.stderr):
        return "bar", 0.0 if forced else BAR_AFTER_S
    return "lines", BAR_AFTER_S if forced else LINES_AFTER_S
