"""Where leases were while they were waited for: what bench.scale.watch saw in the coordinators, beside the agents' own
times."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.scale.small_agent import Tally

SHOWN = 12


def slowest_leases(tally: Tally, timelines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of leases that took SLOW_S: the parts of their time in milliseconds, the steps of coordinators that fell into
    it, and the slowest ones by themselves."""
    came = {(node, seq): at for timeline in timelines for node, seq, at in timeline["pulls"]}
    left = {(node, seq): at for timeline in timelines for node, seq, at in timeline["leases"]}
    steps = sorted((began, took, cpu, name) for timeline in timelines for name, began, took, cpu in timeline["steps"])
    since = tally.since_s
    rows = []
    causes: Counter[str] = Counter()
    for took, sent, node, seq in sorted(tally.slow, reverse=True):
        if (node, seq) not in came or (node, seq) not in left:
            continue
        at, away = came[node, seq], left[node, seq]
        during = [(name, step) for began, step, _, name in steps if began < sent + took and began + step > sent]
        causes.update({name for name, _ in during})
        rows.append(
            {
                "took_ms": round(1000 * took, 1), "sent_s": round(sent - since, 3),
                "to_coordinator_ms": round(1000 * (at - sent), 1), "in_it_ms": round(1000 * (away - at), 1),
                "to_agent_ms": round(1000 * (sent + took - away), 1),
                "during": sorted({f"{name} {1000 * step:.0f} ms" for name, step in during}),
            }
        )  # fmt: skip
    shares = {
        key: round(sum(row[key] for row in rows) / max(1e-9, sum(row["took_ms"] for row in rows)), 3)
        for key in ("to_coordinator_ms", "in_it_ms", "to_agent_ms")
    }
    long_steps: dict[str, list[tuple[float, float]]] = {}
    for began, took, cpu, name in steps:
        if began >= since:
            long_steps.setdefault(name, []).append((1000 * took, 1000 * cpu))
    return {
        "count": len(tally.slow), "share_of_their_time": shares, "steps_during": dict(causes.most_common()),
        "long_steps": {
            name: {
                "count": len(all_ms), "sum_ms": round(sum(ms for ms, _ in all_ms)), "max_ms": round(max(all_ms)[0], 1),
                "cpu_ms": round(sum(ms for _, ms in all_ms)),
            }
            for name, all_ms in sorted(long_steps.items())
        },
        "messages": [timeline["messages"] for timeline in timelines], "slowest": rows[:SHOWN],
    }  # fmt: skip
