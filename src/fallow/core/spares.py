"""For which interpreters a node keeps a sandbox in reserve, that no job has touched yet."""

from __future__ import annotations

from collections.abc import Mapping

ENVIRONMENTS_LIMIT = 2
"""Built environments that have one, beside the agent's own interpreter."""
IDLE_S = 600.0
"""One whose environment no job has asked for so long is given up."""
FREE_SHARE = 0.15
"""Of the machine's memory: with less available, environments have none."""


def kept_spares(used_s: Mapping[str, float], now_s: float, available_bytes: int, total_bytes: int) -> list[str]:
    """The environments (by interpreter, with when a job last asked for each) that are worth one, latest first."""
    if available_bytes < total_bytes * FREE_SHARE:
        return []
    recent = sorted((python for python, at in used_s.items() if now_s - at <= IDLE_S), key=lambda one: -used_s[one])
    return recent[:ENVIRONMENTS_LIMIT]
