"""Turns rows and peers into measurements, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.envs import NotInstalled, python_of
from bench.measure import Measurement, run_cold, run_workload
from bench.peers import peer_class
from bench.peers.base import Peer
from bench.rows import Row, Step

COLD_VARIANTS = {"fallow": ("embedded", "running pool")}


@dataclass(frozen=True)
class Settings:
    quick: bool
    out: Path
    memory_sizes: tuple[int, ...]
    """For Fallow; peers hold everything at once and run the smallest."""
    pythons: dict[str, Path]
    """Environments given by the caller, by peer, in place of those made here."""
    repeat: int | None = None


def run_rows(
    rows: Sequence[Row], peers: Sequence[str], settings: Settings, say: Callable[[str], None]
) -> list[Measurement]:
    """Row by row, so that what is compared ran side by side in time."""
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
        for peer in peers:
            if peer in missing:
                found.append(Measurement(row.name, peer, error=missing[peer]))
                continue
            if reason := peer_class(peer).not_applicable.get(row.name):
                found.append(Measurement(row.name, peer, error=f"not applicable: {reason}"))
                continue
            one = _run_row(row, peer, pythons[peer], settings)
            found.append(one)
            shown = row.show(one.values) if one.values else ""
            say(f"{row.name:12} {peer:8} {shown or one.error}" + (f" [{one.error}]" if shown and one.error else ""))
    return found


def _run_row(row: Row, peer: str, python: Path, settings: Settings) -> Measurement:
    merged = Measurement(row.name, peer)
    for step in row.steps:
        if step.workload in peer_class(peer).not_applicable:
            continue
        for one in _run_step(row, step, peer, python, settings):
            merged.values |= one.values
            merged.error = merged.error or one.error
            merged.left_behind += one.left_behind
            merged.took_s += one.took_s
    return merged


def _run_step(row: Row, step: Step, peer: str, python: Path, settings: Settings) -> list[Measurement]:
    kind = peer_class(peer)
    parameters: dict[str, Any] = {**step.parameters, **(step.quick if settings.quick else {})}
    if settings.repeat is not None and "repeat" in parameters:
        parameters["repeat"] = settings.repeat
    scratch = settings.out / "scratch"
    if step.workload == "cold":
        return [
            run_cold(
                python, peer, variant, kind.cold_script(variant),
                limit_s=step.limit_s, scratch=scratch, repeat=parameters["repeat"],
            )
            for variant in COLD_VARIANTS.get(peer, ("embedded",))
        ]  # fmt: skip
    if step.workload == "map":
        parameters["tasks"] = _plain_tasks(kind, settings)
    if step.workload != "memory":
        return [run_workload(python, peer, step.workload, parameters, limit_s=step.limit_s, scratch=scratch)]
    measurements = []
    for size in settings.memory_sizes if peer == "fallow" else settings.memory_sizes[:1]:
        one = run_workload(python, peer, "memory", {**parameters, "tasks": size}, limit_s=step.limit_s, scratch=scratch)
        one.values = {f"{key} {size}": value for key, value in one.values.items() if key != "tasks"}
        measurements.append(one)
    for one in measurements[:1]:
        if (first := one.values.get(f"memory_mb {settings.memory_sizes[0]}")) is not None:
            one.values["memory_mb"] = first
    return measurements


def _plain_tasks(kind: type[Peer], settings: Settings) -> int:
    return max(1000, kind.plain_tasks // 5) if settings.quick else kind.plain_tasks
