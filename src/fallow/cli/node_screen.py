"""The screen of `fallow node top`: state above, plots in the middle, what runs below; keys pause, resume and drain."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid
from textual.widgets import DataTable, Footer, Static
from textual_plotext import PlotextPlot

from fallow.agent.control import Drain, Pause, Question, Resume, Status
from fallow.cli.node_client import ask_agents
from fallow.cli.node_history import CPU, GPU, MEMORY, TASKS, History
from fallow.cli.node_show import status_lines
from fallow.cli.show import duration_words
from fallow.core.terminal import name_words
from fallow.model.errors import FallowError

PERCENT = (CPU, MEMORY, GPU)
PLOT_ROWS = 10
"""Of the terminal, for a plot in which something can be seen."""
SPARE_ROWS = 2
"""Head of the list of jobs, keys."""
LESS = ("runs", "today", "total", "an hour", "watch", "sandbox", "limits", "settings")
"""What is told as it stands where there is no room: the list of jobs or `fallow node status` has it."""
FIRST = (GPU, CPU, TASKS)
NAME_CELLS = 36
"""Of a job's name, so that all columns are seen in 80."""
COLOURS = ("cyan", "green", "orange", "red", "magenta", "blue", "white")


class NodeScreen(App[None]):
    """Asks the agent every `interval_s`; an agent that has ended is waited for."""

    CSS = """
    #state { height: auto; padding: 0 1; }
    #plots { grid-size: 2; grid-gutter: 0 1; height: 1fr; min-height: 8; }
    #plots PlotextPlot { height: 1fr; min-height: 8; }
    #jobs { height: auto; max-height: 8; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "order('pause')", "Pause"),
        Binding("r", "order('resume')", "Resume"),
        Binding("d", "order('drain')", "Drain"),
        Binding("q", "quit", "Quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, interval_s: float, agent: int, first: dict[str, Any]) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._agent = agent
        self._body = first
        self._history = History()
        self._history.add(first, time.monotonic())
        self._asking = False
        self._problem = ""
        """Why there is no answer: then what was answered before is not shown as if it were so now."""

    def compose(self) -> ComposeResult:
        yield Static(id="state", markup=False)
        yield Grid(id="plots")
        jobs: DataTable[str | Text] = DataTable(id="jobs", cursor_type="none", show_cursor=False)
        # Here: a terminal tells its size, and all is drawn, before anything is mounted.
        jobs.add_columns("RUNS", "SLOTS", "GPUS", "SINCE", "LONGEST TASK")
        yield jobs
        yield Footer()

    async def on_mount(self) -> None:
        self.set_interval(self._interval_s, self.look)
        await self._draw()

    async def on_resize(self) -> None:
        await self._draw()

    async def look(self) -> None:
        """Ask and draw. A slow answer is not asked for twice."""
        if not self._asking:
            await self._ask(Status())

    async def action_order(self, order: str) -> None:
        questions: dict[str, Question] = {"pause": Pause(), "resume": Resume(), "drain": Drain()}
        await self._ask(questions[order])

    async def _ask(self, question: Question) -> None:
        self._asking = True
        try:
            self._body = (await asyncio.to_thread(ask_agents, question, self._agent))[0].body
            self._problem = ""
            self._history.add(self._body, time.monotonic())
        except FallowError as error:
            self._problem = str(error)
        finally:
            self._asking = False
        await self._draw()

    async def _draw(self) -> None:
        listed = [] if self._problem else self._body["jobs"]
        lines = _without(status_lines(self._body, time.time(), self._agent, False), ("runs",))
        names = list(self._history.series)
        taken = SPARE_ROWS + min(7, len(listed))
        if self._problem:
            lines = [lines[0], f"  state     not known now: {self._problem}"]
        if self._rows_left(lines, taken) < PLOT_ROWS * -(-len(names) // 2):
            lines = _without(lines, LESS)
        rows = max(1, self._rows_left(lines, taken) // PLOT_ROWS)
        shown = sorted(names, key=lambda name: (name not in FIRST, names.index(name)))[: 2 * rows]
        self.query_one("#state", Static).update("\n".join(lines))
        jobs = self.query_one("#jobs", DataTable)
        jobs.clear()
        for job in listed:
            since = duration_words(time.time() - job["since_unix_s"])
            longest = duration_words(job["longest_task_s"])
            # As text: a name is a stranger's, and may hold what the table would take for marks of its own.
            shown_name = Text(name_words(job["name"] or job["job_id"], NAME_CELLS), no_wrap=True)
            jobs.add_row(shown_name, str(job["workers"]), str(job["gpus"]), since, longest)
        grid = self.query_one("#plots", Grid)
        for number, (name, values) in enumerate(self._history.series.items()):
            widget_id = f"plot-{number}"
            found = grid.query(f"#{widget_id}")
            plot = found.first(PlotextPlot) if found else PlotextPlot(id=widget_id)
            if not found:
                await grid.mount(plot)
            plot.display = name in shown
            # The last of an odd number has the row for itself.
            alone = len(shown) % 2 == 1 and name == [known for known in names if known in shown][-1]
            plot.styles.column_span = 2 if alone else 1
            _plot(plot, name, list(values), COLOURS[number % len(COLOURS)], self._interval_s)

    def _rows_left(self, lines: list[str], taken: int) -> int:
        """Long lines take several."""
        width = max(1, self.size.width - 2)
        return self.size.height - taken - sum(max(1, -(-len(line) // width)) for line in lines)


def _without(lines: list[str], keys: tuple[str, ...]) -> list[str]:
    """Lines of the status but those, with what goes on below them."""
    kept: list[str] = []
    key = ""
    for line in lines:
        key = (line[2:12].strip() or key) if line.startswith("  ") else ""
        if key not in keys:
            kept.append(line)
    return kept


def _plot(widget: PlotextPlot, name: str, values: list[float], colour: str, interval_s: float) -> None:
    plt = widget.plt
    plt.clear_data()
    plt.clear_figure()
    plt.title(f"{name}  now {values[-1]:.4g}")
    times = [-(len(values) - 1 - at) * interval_s for at in range(len(values))]
    plt.plot(times, values, marker="braille", color=colour)
    highest = max(values)
    top = 100 if name in PERCENT else max(1.0, highest * 1.15)
    plt.ylim(0, top)
    marks = [0.0, top / 2, top]
    plt.yticks(marks, [f"{mark:.3g}" for mark in marks])
    first = min(times[0], -30 * interval_s)
    plt.xlim(first, 0)
    plt.xticks([first, first / 2, 0], [f"{first:.0f}", f"{first / 2:.0f}", "now"])
    plt.xlabel("seconds")
    widget.refresh()
