"""The plot: one small bar chart for each row that compares by a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.measure import Measurement
from bench.peers import peer_class
from bench.report import values_of
from bench.rows import Row


def write_plot(path: Path, rows: Sequence[Row], measurements: Sequence[Measurement]) -> bool:
    """Write a PNG. False where there is nothing to draw or no matplotlib to draw it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    charts = []
    for row in rows:
        values = values_of(row, measurements)
        bars = []
        for peer, found in values.items():
            if (value := found.get(row.key)) is not None and value > 0:
                bars.append((peer_class(peer).title, float(value), peer == "fallow"))
            if (tuned := found.get("tuned_per_s")) is not None and row.name == "map":
                bars.append((f"{peer_class(peer).title}, tuned", float(tuned), False))
        if bars:
            charts.append((row, sorted(bars, key=lambda bar: bar[1], reverse=row.higher)))
    if not charts:
        return False
    columns = 2
    lines = -(-len(charts) // columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(13, 2.6 * lines + 0.6), squeeze=False)
    for axes, (row, bars) in zip(grid.flat, charts, strict=False):
        names = [name for name, _, _ in bars]
        axes.barh(names, [value for _, value, _ in bars], color=["#c2571a" if own else "#8fa3b0" for _, _, own in bars])
        axes.invert_yaxis()
        lengths = [value for _, value, _ in bars]
        if max(lengths) > 20 * min(lengths):
            axes.set_xscale("log")
        axes.set_title(f"{row.title} [{row.unit}], {'more' if row.higher else 'less'} is better", fontsize=9)
        axes.tick_params(labelsize=8)
        for position, length in enumerate(lengths):
            axes.text(length, position, f" {length:,.4g}", va="center", fontsize=7)
        axes.margins(x=0.15)
    for axes in list(grid.flat)[len(charts) :]:
        axes.set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
