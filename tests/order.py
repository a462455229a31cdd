"""The order in which test files go to several processes: the costly ones first, so that none is left for the end.

`tests/costs.txt` holds the seconds of each file that takes more than a moment; `scripts/test --record-costs` writes it
anew. A file that is not in it counts as quick.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

COSTS = Path(__file__).with_name("costs.txt")
LEAST_S = 0.5
"""Files below this stay in the order of their names."""

_spent_s: dict[str, float] = defaultdict(float)


def known_costs(text: str) -> dict[str, float]:
    """From lines of seconds and a path; others are left out."""
    costs = {}
    for line in text.splitlines():
        seconds, _, path = line.partition(" ")
        if path and seconds.replace(".", "", 1).isdigit():
            costs[path.strip()] = float(seconds)
    return costs


def file_of(node_id: str) -> str:
    return node_id.partition("::")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-costs", action="store_true", help="write the seconds of each test file to tests/costs.txt"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only for one of several processes: a run in one keeps the order that it was asked for."""
    if hasattr(config, "workerinput") and COSTS.exists():
        costs = known_costs(COSTS.read_text())
        items.sort(key=lambda item: -costs.get(file_of(item.nodeid), 0.0))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _spent_s[file_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.getoption("--record-costs") or hasattr(session.config, "workerinput"):
        return
    lines = [
        f"{seconds:.1f} {path}"
        for path, seconds in sorted(_spent_s.items(), key=lambda found: (-found[1], found[0]))
        if seconds >= LEAST_S
    ]
    COSTS.write_text("\n".join(lines) + "\n")
    print(f"\n{len(lines)} files written to {COSTS}", file=sys.stderr)
