"""The run as a picture. Needs matplotlib (the `demo` extra)."""

from __future__ import annotations

from pathlib import Path

from fallow.sim.summary import Summary


def draw(summary: Summary, path: Path) -> None:
    """Live and busy slots, and tasks recorded, over virtual hours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    hours = [sample.at_s / 3600 for sample in summary.samples]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6))
    above.plot(hours, [sample.up_slots for sample in summary.samples], label="live slots")
    above.plot(hours, [sample.busy_slots for sample in summary.samples], label="busy slots")
    above.set_ylim(bottom=0)
    above.legend()
    above.set_title(f"{summary.nodes:,} nodes, {summary.jobs} jobs, seed {summary.seed}")
    below.plot(hours, [sample.recorded for sample in summary.samples], label="tasks recorded")
    below.set_xlabel("virtual hours")
    below.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
