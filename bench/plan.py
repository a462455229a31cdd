"""Turns rows and peers into measurements, one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.envs import NotInstalled, python_of
from bench.measure import Measurement, run_cold, run_workload
from bench.peers import peer_class
from bench.rows import Row, Step

COLD_VARIANTS = {"fallow": ("embedded", "running pool")}
OUT_OF_TIME = "not run: the time for the whole run was up"


@dataclass(frozen=True)
class Settings:
    quick: bool
    out: Path
    memory_sizes: tuple[int, ...]
    """For Fallow; peers hold everything at once and run the smallest, or less."""
    pythons: dict[str, Path]
    """Environments given by the caller, by peer, in place of those made here."""
    repeat: int | None = None
    deadline: float | None = None
    """On the monotonic clock: what runs then is ended, and what comes later is not begun."""


def run_rows(
    rows: Sequence[Row], peers: Sequence[str], settings: Settings, say: Callable[[str], None],
    after_row: Callable[[Sequence[Measurement]], None],
) -> list[Measurement]:  # fmt: skip
    """Row by row, so that what is compared ran side by side in time. `after_row` gets all measurements so far."""
    found: list[Measurement] = []
    pythons: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for peer in peers:
        try:
            pythons[peer] = settings.pythons.get(peer) or python_of(peer, settings.out / "envs")
        except NotInstalled as error:
            missing[peer] = f"cannot be installed here: {error}"
            say(f"{peer}: {missing[peer]}")
    for row in rows:
        touched = False
        for peer in peers:
            if peer in missing:
                found.append(Measurement(row.name, peer, error=missing[peer]))
                continue
            if reason := peer_class(peer).not_applicable.get(row.name):
                found.append(Measurement(row.name, peer, error=f"not applicable: {reason}"))
                continue
            if hasattr(os, "sync"):
                os.sync()  # what the last one wrote is not to be written while this one is measured
            one = _run_row(row, peer, pythons[peer], settings, touch=not touched)
            touched = True
            found.append(one)
            shown = row.show(one.values) if one.values else ""
            words = (shown or one.error) + (f" [{one.error}]" if shown and one.error else "")
            say(f"{row.name:12} {peer:8} {words}, took {one.took_s:.0f} s")
        after_row(found)
    return found


def parameters_of(step: Step, peer: str, *, quick: bool, repeat: int | None = None) -> dict[str, Any]:
    """A step's parameters for a peer: the row's, of which a quick run and the peer's own sizes may take away."""
    parameters = {**step.parameters, **peer_class(peer).sizes.get(step.workload, {})}
    if quick:
        parameters |= {
            key: min(value, parameters[key]) if key in step.parameters else value for key, value in step.quick.items()
        }
        if step.workload == "map":
            parameters["tasks"] = max(1000, parameters["tasks"] // 5)
    if repeat is not None and "repeat" in parameters:
        parameters["repeat"] = repeat
    return parameters


def memory_sizes_of(peer: str, sizes: Sequence[int]) -> list[int]:
    if peer == "fallow":
        return list(sizes)
    return [min(sizes[0], peer_class(peer).sizes.get("memory", {}).get("tasks", sizes[0]))]


def _run_row(row: Row, peer: str, python: Path, settings: Settings, *, touch: bool) -> Measurement:
    """`touch`: free memory is touched where the row's parameters say so; the first peer's turn does it for all."""
    merged = Measurement(row.name, peer)
    for step in row.steps:
        kind = peer_class(peer)
        if step.workload in kind.not_applicable or (step.workload.endswith("_careful") and not kind.careful):
            continue
        for one in _run_step(step, peer, python, settings, touch=touch):
            merged.values |= one.values
            merged.error = merged.error or one.error
            merged.left_behind += one.left_behind
            merged.took_s += one.took_s
    return merged


def _run_step(step: Step, peer: str, python: Path, settings: Settings, *, touch: bool) -> list[Measurement]:
    parameters = parameters_of(step, peer, quick=settings.quick, repeat=settings.repeat)
    if not touch:
        parameters.pop("touch_bytes", None)
    scratch = settings.out / "scratch"
    found: list[Measurement] = []
    if step.workload == "cold":
        for variant in COLD_VARIANTS.get(peer, ("embedded",)):
            if (limit_s := _limit_s(step, settings)) <= 0:
                return [*found, Measurement("cold", peer, error=OUT_OF_TIME)]
            script = peer_class(peer).cold_script(variant)
            found.append(
                run_cold(python, peer, variant, script, limit_s=limit_s, scratch=scratch, repeat=parameters["repeat"])
            )
        return found
    sizes = memory_sizes_of(peer, settings.memory_sizes) if step.workload == "memory" else []
    for size in sizes or (None,):
        if (limit_s := _limit_s(step, settings)) <= 0:
            return [*found, Measurement(step.workload, peer, error=OUT_OF_TIME)]
        if size is not None:
            parameters["tasks"] = size
        one = run_workload(python, peer, step.workload, parameters, limit_s=limit_s, scratch=scratch)
        if size is not None:
            one.values = {f"{key} {size}": value for key, value in one.values.items() if key != "tasks"}
            if size == sizes[0] and (first := one.values.get(f"memory_mb {size}")) is not None:
                one.values |= {"memory_mb": first, "tasks": size}
        found.append(one)
    return found


def _limit_s(step: Step, settings: Settings) -> float:
    """Seconds that the step may take; 0 or less: it is not begun."""
    if settings.deadline is None:
        return step.limit_s
    return min(step.limit_s, settings.deadline - time.monotonic())
