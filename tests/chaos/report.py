"""What came of a run, for people and as JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

DEADLINE_S = 5.0
SLOW_S = 2.5
"""Requests that took longer are listed with what was wrong meanwhile, so that causes can be read."""
AFTERMATH_S = 5.0
"""A fault may still be felt for so long after it was mended."""
PROMPT_S = 1.0
"""A pool has recovered from a fault when every request is answered within this again."""


class Noted(msgspec.Struct, frozen=True):
    """A line of a customer. `began` is Unix time."""

    what: str
    began: float
    seconds: float
    wrong: str
    job: str

    @property
    def is_request(self) -> bool:
        """Of those to the pool itself; a call also runs on a node, which may be the one that dies."""
        return self.what.startswith("ask:") or self.what in ("submit", "status")

    @property
    def is_served(self) -> bool:
        return not self.wrong and self.seconds <= DEADLINE_S


@dataclass
class Happened:
    """A fault that was made."""

    kind: str
    target: str
    began: float
    ended: float


@dataclass
class Report:
    seed: int
    seconds: float
    folder: str
    happened: list[Happened] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    memory_before: dict[str, int] = field(default_factory=dict)
    memory_after: dict[str, int] = field(default_factory=dict)
    leases: int = 0
    blobs: int = 0
    blobs_named: int = 0

    def availability(self, calls: bool = False) -> tuple[int, int]:
        """(served within the deadline, all) of requests, or of calls."""
        chosen = [noted for noted in self.noted if (noted.what == "call" if calls else noted.is_request)]
        return sum(1 for noted in chosen if noted.is_served), len(chosen)

    def recovery(self) -> dict[str, list[float]]:
        """By kind of fault: seconds from its beginning until requests were prompt again, each time."""
        found: dict[str, list[float]] = {}
        for at, fault in enumerate(self.happened):
            until = self.happened[at + 1].began if at + 1 < len(self.happened) else float("inf")
            slow = [
                noted.began + noted.seconds
                for noted in self.noted
                if (noted.is_request or noted.what == "call")
                and fault.began - PROMPT_S <= noted.began < until
                and (noted.seconds > PROMPT_S or noted.wrong)
                and noted.began + noted.seconds > fault.began
            ]
            found.setdefault(fault.kind, []).append(max([0.0, *(end - fault.began for end in slow)]))
        return found

    def slow(self) -> list[Noted]:
        """Requests and calls that took over SLOW_S, or came to nothing."""
        chosen = [noted for noted in self.noted if noted.is_request or noted.what == "call"]
        return [noted for noted in chosen if noted.seconds > SLOW_S or noted.wrong]

    def in_force(self, noted: Noted) -> str:
        """Every fault that may have been felt while the request waited, and its time since the request began."""
        end = noted.began + noted.seconds
        felt = [f for f in self.happened if f.began <= end and f.ended + AFTERMATH_S >= noted.began]
        return ", ".join(
            f"{f.kind} ({f.target}) {f.began - noted.began:+.1f}..{f.ended - noted.began:+.1f} s" for f in felt
        )

    def fault_at(self, noted: Noted) -> str:
        """What was wrong then, or went wrong last before."""
        before = [fault for fault in self.happened if fault.began <= noted.began + noted.seconds]
        if not before:
            return "nothing"
        last = before[-1]
        return f"{last.kind} ({last.target}, {noted.began - last.began:+.1f} s)"

    def lines(self) -> list[str]:
        served, requests = self.availability()
        calls_served, calls = self.availability(calls=True)
        jobs = [noted for noted in self.noted if noted.what.startswith("job:")]
        out = [
            f"seed {self.seed}: {len(self.happened)} faults in {self.seconds:g} s, {len(jobs)} jobs, {calls} calls, "
            f"{requests} requests, {self.leases} leases",
            f"availability: {_share(served, requests)} of requests answered within {DEADLINE_S:g} s "
            f"({requests - served} missed)",
            f"calls: {_share(calls_served, calls)} answered within {DEADLINE_S:g} s, their task included",
            "recovery, in seconds from the beginning of the fault until requests and calls take under a second again:",
        ]
        for kind, seconds in sorted(self.recovery().items()):
            shown = f"median {sorted(seconds)[len(seconds) // 2]:.1f}, worst {max(seconds):.1f}, {len(seconds)} times"
            out.append(f"  {kind:45} {shown}")
        slow = self.slow()
        if slow:
            out.append(
                f"took over {SLOW_S:g} s, with the faults felt meanwhile (seconds from the request's beginning):"
            )
        for noted in slow:
            missed = " MISSED" if not noted.is_served else ""
            words = f" {noted.wrong[:120]};" if noted.wrong else ""
            at = time.strftime("%H:%M:%S", time.localtime(noted.began))
            out.append(
                f"  {at} {noted.what:16} {noted.seconds:5.1f} s{missed};{words} {self.in_force(noted) or 'no fault'}"
            )
        out += [f"left out: {words}" for words in self.left_out]
        grown = {n: (self.memory_after.get(n, 0) - b) >> 20 for n, b in self.memory_before.items()}
        out.append("memory, MB more than at the start: " + ", ".join(f"{n} {mb:+d}" for n, mb in grown.items()))
        out.append(f"blobs: {self.blobs} there, {self.blobs_named} named by jobs")
        out += [f"WRONG: {words}" for words in self.wrong]
        out.append("nothing is wrong" if not self.wrong else f"{len(self.wrong)} things are wrong; logs: {self.folder}")
        return out

    def as_plain(self) -> dict[str, Any]:
        served, requests = self.availability()
        calls_served, calls = self.availability(calls=True)
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "requests": requests,
            "requests_served": served,
            "calls": calls,
            "calls_served": calls_served,
            "jobs": sum(1 for noted in self.noted if noted.what.startswith("job:")),
            "recovery_s": self.recovery(),
            "missed": [
                {**msgspec.structs.asdict(noted), "fault": self.fault_at(noted)}
                for noted in self.noted
                if (noted.is_request or noted.what == "call") and not noted.is_served
            ],
            "slow": [{**msgspec.structs.asdict(noted), "faults": self.in_force(noted)} for noted in self.slow()],
            "faults": [vars(fault) for fault in self.happened],
            "wrong": self.wrong,
            "left_out": self.left_out,
        }


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f} %" if whole else "none"
