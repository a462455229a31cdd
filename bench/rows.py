"""The rows of the table: what is run for each, what is shown of it, and which target Fallow has to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Values = Mapping[str, Any]
AllValues = Mapping[str, Values]
"""Values of one row by the name of the peer; those without a measurement are absent."""


@dataclass(frozen=True)
class Check:
    """One target. `met` is None where what it compares with was not measured."""

    text: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Step:
    """One workload of a row. `parameters` for a full run, `quick` what differs in a quick one."""

    workload: str
    parameters: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 120.0
    """A peer that hangs costs no more than this; for `cold`, of all its runs together."""


@dataclass(frozen=True)
class Row:
    """`key`: the value that peers are compared by; `higher` says which end of it is good."""

    name: str
    title: str
    key: str
    unit: str
    higher: bool
    steps: tuple[Step, ...]
    checks: Callable[[AllValues], list[Check]]
    show: Callable[[Values], str]
    only_after: str = ""
    """Another row whose environment variable or size it shares; for the reader."""


def _get(values: AllValues, peer: str, key: str) -> float | None:
    found = values.get(peer, {}).get(key)
    return None if found is None else float(found)


def _at_least(values: AllValues, key: str, bound: float, unit: str) -> Check:
    found = _get(values, "fallow", key)
    return Check(f"at least {bound:,.10g} {unit}", _number(found, unit), None if found is None else found >= bound)


def _at_most(values: AllValues, key: str, bound: float, unit: str) -> Check:
    found = _get(values, "fallow", key)
    return Check(f"at most {bound:,.10g} {unit}", _number(found, unit), None if found is None else found <= bound)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:,.4g} {unit}"


def _times(values: AllValues, key: str, peer: str, peer_key: str, bound: float, text: str, *, at_least: bool) -> Check:
    """Ratio of Fallow's value to a peer's, against a bound."""
    ours, theirs = _get(values, "fallow", key), _get(values, peer, peer_key)
    if ours is None or not theirs:
        return Check(text, "not measured", None)
    ratio = ours / theirs
    return Check(text, f"{ratio:,.3g} x", ratio >= bound if at_least else ratio <= bound)


def _map_checks(values: AllValues) -> list[Check]:
    key = "tasks_per_s"
    return [
        _at_least(values, key, 1_000_000, "tasks/s"),
        _times(values, key, "pool", key, 12, "12 x multiprocessing.Pool(chunksize=1)", at_least=True),
        _times(values, key, "ray", key, 400, "400 x plain Ray", at_least=True),
        _times(values, key, "ray", "tuned_per_s", 1.0, "level with Ray chunked by hand", at_least=True),
    ]


def _memory_checks(values: AllValues) -> list[Check]:
    checks = []
    sizes = sorted(
        (int(key.rsplit(" ", 1)[1]), key) for key in values.get("fallow", {}) if key.startswith("memory_mb ")
    )
    for size, key in sizes:
        found = _get(values, "fallow", key)
        text = f"under 150 MB for {size:,} tasks"
        checks.append(Check(text, _number(found, "MB"), None if found is None else found < 150))
    return checks or [Check("under 150 MB", "not measured", None)]


def _call_checks(values: AllValues) -> list[Check]:
    return [
        _at_most(values, "p50_ms", 0.8, "ms"),
        _times(values, "p50_ms", "ray", "p50_ms", 0.5, "0.5 x Ray", at_least=False),
    ]


def _submit_checks(values: AllValues) -> list[Check]:
    return [
        _at_least(values, "submits_per_s", 20_000, "/s"),
        _times(values, "submits_per_s", "ppe", "submits_per_s", 2, "2 x ProcessPoolExecutor", at_least=True),
    ]


def _cold_checks(values: AllValues) -> list[Check]:
    return [
        _at_most(values, "cold_s embedded", 0.65, "s"),
        _at_most(values, "cold_s running pool", 0.3, "s"),
    ]


def _array_checks(values: AllValues) -> list[Check]:
    return [
        _at_least(values, "mb_per_s", 400, "MB/s"),
        _times(values, "mb_per_s", "ray", "mb_per_s", 0.8, "0.8 x Ray", at_least=True),
    ]


def _poison_checks(values: AllValues) -> list[Check]:
    ours = values.get("fallow")
    if ours is None:
        return [Check("999 results and one error in under 2 s", "not measured", None)]
    met = ours["results"] == 999 and ours["errors"] == 1 and ours["took_s"] < 2
    return [Check("999 results and one error in under 2 s", _show_poison(ours), met)]


def _kill_checks(values: AllValues) -> list[Check]:
    ours = values.get("fallow")
    if ours is None:
        return [Check("complete, at most 0.3 s longer", "not measured", None)]
    return [Check("complete, at most 0.3 s longer", _show_kill(ours), _complete(ours) and ours["longer_s"] <= 0.3)]


def _control_checks(values: AllValues) -> list[Check]:
    ours = values.get("fallow")
    if ours is None:
        return [Check("complete, nothing twice", "not measured", None)]
    return [Check("complete, nothing twice", _show_control(ours), _complete(ours) and bool(ours["serves"]))]


def _skew_checks(values: AllValues) -> list[Check]:
    """Judged by the flat ratio; beside it what is the pool's own part of that, not the machine's."""
    check = _at_most(values, "makespan_ratio", 1.02, "x")
    over_bare = _get(values, "fallow", "over_bare")
    return [check if over_bare is None else replace(check, measured=f"{check.measured} (over bare {over_bare:.3f})")]


def _complete(values: Values) -> bool:
    return bool(values["results"] == values["of"] and not values["twice"])


def _show_poison(values: Values) -> str:
    return f"{values['results']} results, {values['errors']} errors, {values['took_s']:.2f} s"


def _found(values: Values) -> str:
    return f"{values['results']} of {values['of']}" + (f", {values['twice']} twice" if values["twice"] else "")


def _show_kill(values: Values) -> str:
    if "results" not in values:
        return "-" + _show_careful(values)
    if not _complete(values):
        return f"not complete: {_found(values)}" + _show_careful(values)
    return f"{_found(values)}, {values['longer_s']:+.2f} s" + _show_careful(values)


def _show_careful(values: Values) -> str:
    """What became of the same work by the setting that the note names."""
    careful = {key.removeprefix("careful_"): value for key, value in values.items() if key.startswith("careful_")}
    return f" (careful: {_found(careful)}, {careful['took_s']:.1f} s)" if careful else ""


def _show_control(values: Values) -> str:
    if "results" not in values:
        return "-" + _show_careful(values)
    found = ("" if _complete(values) else "not complete: ") + f"{_found(values)}, {values['took_s']:.1f} s"
    return found + ("" if values["serves"] else "; serves no more") + _show_careful(values)


def _show_skew(values: Values) -> str:
    return f"{values['makespan_ratio']:.3f} (bare {values['bare_ratio']:.3f}, over bare {values['over_bare']:.3f})"


def _show_map(values: Values) -> str:
    plain = f"{values['tasks_per_s']:,}/s" if "tasks_per_s" in values else "-"
    return plain + (f" ({values['tuned_per_s']:,}/s tuned)" if "tuned_per_s" in values else "")


def _show_memory(values: Values) -> str:
    found = [(int(key.rsplit(" ", 1)[1]), value) for key, value in values.items() if key.startswith("memory_mb ")]
    return ", ".join(f"{value:,.0f} MB for {_count(size)}" for size, value in sorted(found))


def _count(tasks: int) -> str:
    return f"{tasks / 1e6:g}M" if tasks >= 1_000_000 else f"{tasks:,}"


def _show_cold(values: Values) -> str:
    if len(values) == 1:
        return ", ".join(f"{value:.2f} s" for value in values.values())
    return ", ".join(f"{value:.2f} s {key.removeprefix('cold_s ')}" for key, value in values.items())


ROWS: tuple[Row, ...] = (
    Row(
        "map", "map of no-op tasks, no chunking by the caller", "tasks_per_s", "tasks/s", True,
        (
            Step("map", {"tasks": 1_000_000, "repeat": 3}, {"repeat": 1}),
            Step("map_tuned", {"tasks": 1_000_000, "repeat": 3}, {"tasks": 200_000, "repeat": 1}),
        ),
        _map_checks, _show_map,
    ),
    Row(
        "memory", "memory of that, all processes beyond their rest", "memory_mb", "MB", False,
        (Step("memory", {"memory": True}, {}, 180.0),),
        _memory_checks, _show_memory,
    ),
    Row(
        "call", "one warm call, p50", "p50_ms", "ms", False,
        (Step("call", {"calls": 2000}, {"calls": 300}),),
        _call_checks, lambda v: f"{v['p50_ms']:.2f} ms (p99 {v['p99_ms']:.2f})",
    ),
    Row(
        "submit", "submit of single no-ops, to the last result", "submits_per_s", "/s", True,
        (Step("submit", {"tasks": 100_000}, {"tasks": 10_000}),),
        _submit_checks, lambda v: f"{v['submits_per_s']:,}/s",
    ),
    Row(
        "cold", "cold `python script.py` to the first result", "cold_s embedded", "s", False,
        (Step("cold", {"repeat": 5}, {"repeat": 2}),),
        _cold_checks, _show_cold,
    ),
    Row(
        "arrays", "tasks of a 1 MB array in, 1 MB out", "mb_per_s", "MB/s", True,
        (Step("arrays", {"tasks": 1000, "repeat": 3, "touch_bytes": 4 << 30},
              {"tasks": 300, "repeat": 1, "touch_bytes": 2 << 30}),),
        _array_checks, lambda v: f"{v['mb_per_s']:,} MB/s",
    ),
    Row(
        "broadcast", "one 256 MB array to every worker", "gb_per_s", "GB/s", True,
        (Step("broadcast", {"bytes": 256_000_000, "repeat": 3, "touch_bytes": 6 << 30},
              {"bytes": 256_000_000, "repeat": 1, "touch_bytes": 3 << 30}),),
        lambda values: [_at_least(values, "gb_per_s", 1.5, "GB/s")], lambda v: f"{v['gb_per_s']:.2f} GB/s",
    ),
    Row(
        "skew", "400 tasks of skewed length, makespan over its lower bound", "makespan_ratio", "x", False,
        (Step("skew", {"tasks": 400, "total_s": 20.0, "repeat": 3}, {"tasks": 400, "total_s": 6.0, "repeat": 1}),),
        _skew_checks, _show_skew,
    ),
    Row(
        "poison", "1 poison task (os._exit) among 1,000", "took_s", "s", False,
        (Step("poison"),),
        _poison_checks, _show_poison,
    ),
    Row(
        "kill_worker", "a worker SIGKILLed in a job of 2,000 x 10 ms", "longer_s", "s", False,
        (
            Step("kill_worker", {"tasks": 2000}, {"tasks": 600}),
            Step("kill_worker_careful", {"tasks": 2000}, {"tasks": 600}),
        ),
        _kill_checks, _show_kill,
    ),
    Row(
        "control", "the control process SIGKILLed in 2,000 x 10 ms and started again", "took_s", "s", False,
        (
            Step("control", {"tasks": 2000}, {"tasks": 600}),
            Step("control_careful", {"tasks": 2000}, {"tasks": 600}),
        ),
        _control_checks, _show_control,
    ),
)  # fmt: skip
ROW_NAMES = tuple(row.name for row in ROWS)
