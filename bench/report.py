"""The table for people, the JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import Measurement
from bench.peers import peer_class
from bench.rows import AllValues, Check, Row

VERDICTS = {True: "[green]met[/]", False: "[red]missed[/]", None: "[dim]-[/]"}


def values_of(row: Row, measurements: Sequence[Measurement]) -> AllValues:
    return {one.peer: one.values for one in measurements if one.row == row.name and one.values}


def ratio_text(row: Row, peer: str, values: AllValues) -> str:
    """How many times better (or worse) Fallow is than the peer by the row's key; '' where it cannot be said."""
    ours, theirs = values.get("fallow", {}).get(row.key), values.get(peer, {}).get(row.key)
    key = row.key
    if row.name == "cold" and theirs is None:
        return ""
    if peer == "fallow" or not ours or not theirs or key in ("longer_s",) or row.name in ("poison", "control"):
        return ""
    ratio = ours / theirs if row.higher else theirs / ours
    if row.name == "memory" and values[peer].get("tasks", 0) < values["fallow"].get("tasks", 0):
        return f"at least {ratio:,.3g} x" if ratio >= 1 else ""  # what it holds grows with the tasks: it had fewer
    return f"{ratio:,.3g} x"


def shown(row: Row, one: Measurement, values: AllValues) -> str:
    """The result in words, with the number of tasks where it was another than Fallow's; '-' where there is none."""
    if not one.values:
        return "-"
    count, ours = one.values.get("tasks"), values.get("fallow", {}).get("tasks")
    over = f", over {count:,} tasks" if row.name != "memory" and count and ours and count != ours else ""
    return row.show(one.values) + over


def print_report(rows: Sequence[Row], measurements: Sequence[Measurement], console: Console) -> None:
    """One table of all measurements, one of the targets."""
    table = Table(title="Fallow and its peers on the same work, two workers each", show_lines=False)
    for name in ("measure", "system", "result", "Fallow is better by", "note"):
        table.add_column(name, overflow="fold")
    for row in rows:
        values = values_of(row, measurements)
        title = row.title
        for one in (one for one in measurements if one.row == row.name):
            result = shown(row, one, values)
            table.add_row(title, peer_class(one.peer).title, result, ratio_text(row, one.peer, values), _note(row, one))
            title = ""
        table.add_section()
    console.print(table)
    targets = Table(title="Targets")
    for name in ("measure", "target", "measured", ""):
        targets.add_column(name, overflow="fold")
    for row in rows:
        title = row.title
        for check in row.checks(values_of(row, measurements)):
            targets.add_row(title, check.text, check.measured, VERDICTS[check.met])
            title = ""
    console.print(targets)


def markdown(rows: Sequence[Row], measurements: Sequence[Measurement]) -> str:
    """The same two tables for the documents."""
    peers = list(dict.fromkeys(one.peer for one in measurements))
    lines = ["| measure | target | measured | |", "|---|---|---|---|"]
    words = {True: "met", False: "missed", None: "not measured"}
    for row in rows:
        for check in row.checks(values_of(row, measurements)):
            lines.append(f"| {row.title} | {check.text} | {check.measured} | {words[check.met]} |")
    lines += [
        "",
        f"| measure | {' | '.join(peer_class(peer).title for peer in peers)} |",
        "|---" * (len(peers) + 1) + "|",
    ]
    for row in rows:
        values, cells = values_of(row, measurements), []
        for peer in peers:
            one = next((one for one in measurements if one.row == row.name and one.peer == peer), None)
            if one is None or (not one.values and one.error.startswith("not applicable")):
                cells.append("-")
            else:
                found = shown(row, one, values) if one.values else ""
                cells.append("; ".join(part for part in (found, one.error.split(":")[0]) if part))
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _note(row: Row, one: Measurement) -> str:
    notes = []
    if row.name == "map" and "tasks_per_s" in one.values:
        notes.append(f"over {one.values['tasks']:,} tasks" if "tasks" in one.values else "")
        if "tuned_per_s" in one.values:
            notes.append(f"tuned: {peer_class(one.peer).tuned}, over {one.values['tuned_tasks']:,} tasks")
    if message := one.values.get("message"):
        notes.append(message)
    if "careful_results" in one.values:
        message = one.values["careful_message"]
        notes.append(f"careful: {peer_class(one.peer).careful}" + (f" ({message})" if message else ""))
    if one.error:
        notes.append(one.error)
    if one.left_behind:
        notes.append(f"left behind: {', '.join(sorted(set(one.left_behind)))}")
    return "; ".join(note for note in notes if note)


def as_json(rows: Sequence[Row], measurements: Sequence[Measurement], quick: bool) -> dict[str, Any]:
    checks: dict[str, list[Check]] = {row.name: row.checks(values_of(row, measurements)) for row in rows}
    return {
        "made_unix_s": int(time.time()),
        "machine": {
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        "quick": quick,
        "measurements": [one.as_json() for one in measurements],
        "targets": {
            name: [{"text": check.text, "measured": check.measured, "met": check.met} for check in found]
            for name, found in checks.items()
        },
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """Whole or not at all: it is written again after every row, and read while the bench runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(content)
    beside.replace(path)
