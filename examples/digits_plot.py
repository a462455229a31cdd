"""The demo's picture: all scores, who worked when, and where the best model errs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "support vectors": "#2563eb",
    "neighbours": "#16a34a",
    "logistic": "#ca8a04",
    "forest": "#9333ea",
    "extra trees": "#db2777",
    "network": "#ea580c",
}


def draw(path: Path, results: list[dict[str, Any]], final: dict[str, Any], events: list[tuple[float, str]]) -> None:
    """Write the PNG. `events`: (unix seconds, words)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (scores, times, errors) = pyplot.subplots(
        1, 3, figsize=(15, 4.6), width_ratios=(1.25, 1.35, 1), layout="constrained"
    )
    _draw_scores(scores, results)
    _draw_times(times, results, events)
    _draw_confusion(errors, final)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_scores(axes: Any, results: list[dict[str, Any]]) -> None:
    ranked = sorted(results, key=lambda result: -result["score"])
    for kind, colour in COLOURS.items():
        places = [
            (place, result["score"]) for place, result in enumerate(ranked) if result["configuration"]["model"] == kind
        ]
        axes.scatter(*zip(*places, strict=True), s=9, color=colour, label=kind)
    axes.set_title(f"{len(results)} configurations, best first")
    axes.set_xlabel("rank")
    axes.set_ylabel("cross-validated accuracy")
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.25)


def _draw_times(axes: Any, results: list[dict[str, Any]], events: list[tuple[float, str]]) -> None:
    begin = min(result["started"] for result in results)
    nodes = sorted({result["node"] for result in results})
    for result in results:
        axes.barh(
            nodes.index(result["node"]),
            result["ended"] - result["started"],
            left=result["started"] - begin,
            height=0.6,
            color=COLOURS[result["configuration"]["model"]],
            edgecolor="white",
            linewidth=0.3,
        )
    for at, words in events:
        axes.axvline(at - begin, color="#111827", linestyle="--", linewidth=1)
        axes.text(at - begin, len(nodes) - 0.42, f" {words}", fontsize=8, rotation=0, va="bottom")
    axes.set_yticks(range(len(nodes)), nodes)
    axes.set_ylim(-0.6, len(nodes) - 0.15)
    axes.set_title("who worked on what, and when")
    axes.set_xlabel("seconds")


def _draw_confusion(axes: Any, final: dict[str, Any]) -> None:
    matrix = final["confusion"]
    axes.imshow([[value**0.5 for value in row] for row in matrix], cmap="Blues")
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            if value:
                axes.text(
                    column, row, value, ha="center", va="center", fontsize=8, color="white" if value > 12 else "black"
                )
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.set_xlabel("guessed")
    axes.set_ylabel("is")
    axes.set_title(f"best model on {final['held_out']} unseen digits: {final['accuracy']:.1%}")
