"""The report of a run as tables for documents."""

from __future__ import annotations

import time

from tests.chaos.report import AFTERMATH_S, CALL_PROMPT_S, DEADLINE_S, PROMPT_S, Report, share_of


def markdown(report: Report, command: str) -> str:
    """`command`: how the run was begun."""
    day = time.strftime("%Y-%m-%d", time.localtime(report.since))
    jobs = [noted for noted in report.noted if noted.what.startswith("job:")]
    out = [
        f"`{command}` ({day}): {len(report.happened)} faults in {report.seconds / 60:g} minutes, "
        f"{len(jobs):,} jobs, {report.leases:,} leases; "
        + ("nothing was wrong." if not report.wrong else f"{len(report.wrong)} things were wrong."),
        "",
        f"| | asked | answered within {DEADLINE_S:g} s | missed | median | 99.9 % within | slowest |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, calls in (("requests", False), ("single calls, their task included", True)):
        spread = report.spread(calls)
        if spread is not None:
            served, count = report.availability(calls)
            out.append(
                f"| {what} | {count:,} | {share_of(served, count)} | {count - served} "
                f"| {1000 * spread.median_s:.0f} ms | {spread.late_s:.1f} s | {spread.slowest_s:.1f} s |"
            )
    out += [
        "",
        f"Time to recover: from the beginning of a fault (it lasts up to several seconds) until every request is "
        f"answered within {PROMPT_S:g} s and every call within {CALL_PROMPT_S:g} s again; 0.0 where none was slower.",
        "",
        f"| fault | times | recovered, p50 | recovered, max | slowest answer | answered within {DEADLINE_S:g} s "
        f"while it lasted and {AFTERMATH_S:g} s after |",
        "|---|---|---|---|---|---|",
    ]
    out += [
        f"| {kind.kind} | {kind.times} | {kind.recovery_median_s:.1f} s | {kind.recovery_worst_s:.1f} s "
        f"| {kind.slowest_s:.1f} s | {kind.served:,} of {kind.asked:,} |"
        for kind in sorted(report.by_kind(), key=lambda each: (-each.recovery_worst_s, each.kind))
    ]
    slowest = report.slowest()
    out += [
        "",
        f"The slowest {len(slowest)}, with the faults that were felt meanwhile (seconds from its beginning):",
        "",
        "| what | took | faults |",
        "|---|---|---|",
    ]
    out += [
        f"| {noted.what} | {noted.seconds:.1f} s{'' if noted.is_served else ', missed'} "
        f"| {report.in_force(noted) or 'none'} |"
        for noted in slowest
    ]
    return "\n".join(out) + "\n"
