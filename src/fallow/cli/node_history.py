"""What `fallow node top` plots: one series a quantity, made from the agent's answers."""

from __future__ import annotations

from collections import deque
from typing import Any

LENGTH = 180
"""Looks that are kept."""
RATE_S = 5.0
"""Tasks are counted as they are handed in, many at once: their rate is a mean over so long."""

CPU, MEMORY, TASKS, HEAT, GPU, GPU_HEAT, WASTE = (
    "CPU %",
    "memory %",
    "tasks/s",
    "processor °C",
    "GPU %",
    "GPU °C",
    "wasted s/s",
)


class History:
    """The last looks. A quantity that this machine cannot tell has no series."""

    def __init__(self) -> None:
        self.series: dict[str, deque[float]] = {}
        self._last: tuple[float, dict[str, Any]] | None = None
        self._done: deque[tuple[float, int]] = deque()

    def add(self, body: dict[str, Any], at_s: float) -> None:
        """Take an answer in; `at_s` on a clock that does not jump."""
        machine = body["machine"]
        self._note(CPU, machine.get("cpu_percent"))
        if machine["memory_bytes"]:
            self._note(MEMORY, 100 * machine["memory_used_bytes"] / machine["memory_bytes"])
        self._note(HEAT, machine["cpu_c"])
        shares = [gpu["share"] for gpu in machine["gpus"] if gpu.get("share") is not None]
        self._note(GPU, 100 * sum(shares) / len(shares) if shares else None)
        heats = [gpu["temperature_c"] for gpu in machine["gpus"] if gpu.get("temperature_c")]
        self._note(GPU_HEAT, max(heats, default=None))
        if self._last is not None and at_s > self._last[0]:
            passed_s, before = at_s - self._last[0], self._last[1]
            first_s, first = self._done[0]
            self._note(TASKS, max(0, body["tasks_done"] - first) / (at_s - first_s))
            if "wasted_s" in body:
                self._note(WASTE, max(0.0, body["wasted_s"] - before.get("wasted_s", 0.0)) / passed_s)
        self._last = (at_s, body)
        if self._done and body["tasks_done"] < self._done[-1][1]:
            self._done.clear()  # another agent, which counts from the start
        self._done.append((at_s, body["tasks_done"]))
        while len(self._done) > 1 and at_s - self._done[1][0] >= RATE_S:
            self._done.popleft()

    def _note(self, name: str, value: float | None) -> None:
        if value is not None:
            self.series.setdefault(name, deque(maxlen=LENGTH)).append(float(value))

    def last(self, name: str) -> float | None:
        values = self.series.get(name)
        return values[-1] if values else None
