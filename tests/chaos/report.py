"""What came of a run, for people and as JSON."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

DEADLINE_S = 5.0
SLOW_S = 2.0
"""Requests that took longer are listed with what was wrong meanwhile, so that causes can be read."""
SLOWEST = 10
AFTERMATH_S = 5.0
"""A fault may still be felt for so long after it was mended."""
PROMPT_S = 1.0
CALL_PROMPT_S = 2.5
"""A pool has recovered from a fault when every request, and every call, is answered within this again. A call may wait
until a slot has ended what it runs."""


_NO_ROOM = re.compile(
    r"PoolRefused: .*\bdisk .*is full|PoolUnreachable: .* It may be out of room"
    r"|(?:RemoteError: OSError|TaskError): the node could not keep a result .*No space left"
)


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
    def is_call(self) -> bool:
        return self.what == "call"

    @property
    def is_served(self) -> bool:
        return (not self.wrong or self.is_refused_for_room) and self.seconds <= DEADLINE_S

    @property
    def is_refused_for_room(self) -> bool:
        """An answer too, where a disk is full."""
        return bool(_NO_ROOM.match(self.wrong))


HEALED_S = 1.5
"""What lay in a cut link has come so long after it healed."""
WENT_ON_S = 0.5
"""What lay in a stopped process has come so long after it went on."""


@dataclass
class Happened:
    """A fault that was made."""

    kind: str
    target: str
    began: float
    ended: float


@dataclass
class KindFelt:
    """What a kind of fault meant to requests and calls that were under way while it lasted, or soon after. Recovery:
    seconds from its beginning until all were prompt again."""

    kind: str
    times: int
    asked: int
    served: int
    slowest_s: float
    recovery_median_s: float
    recovery_worst_s: float


@dataclass
class Spread:
    """How long they took: the median, what 99.9 % did not exceed, the slowest; and how many were refused for room."""

    median_s: float
    late_s: float
    slowest_s: float
    refused: int


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
    since: float = 0.0
    """Unix time from which requests count: every customer has had its first answer."""
    leases: int = 0
    blobs: int = 0
    """There when all jobs had ended."""
    blobs_named: int = 0

    def asked(self) -> list[Noted]:
        """Requests and calls that count."""
        return [noted for noted in self.noted if noted.began >= self.since and (noted.is_request or noted.is_call)]

    def availability(self, calls: bool = False) -> tuple[int, int]:
        """(served within the deadline, all) of requests, or of calls."""
        chosen = [noted for noted in self.asked() if noted.is_call is calls]
        return sum(1 for noted in chosen if noted.is_served), len(chosen)

    def recovery(self) -> dict[str, list[float]]:
        """By kind of fault: seconds from its beginning until requests were prompt again, each time."""
        found: dict[str, list[float]] = {}
        for at, fault in enumerate(self.happened):
            until = self.happened[at + 1].began if at + 1 < len(self.happened) else float("inf")
            slow = [
                noted.began + noted.seconds
                for noted in self.asked()
                if fault.began - PROMPT_S <= noted.began < until - PROMPT_S  # else it is the next one's
                and (noted.seconds > (CALL_PROMPT_S if noted.is_call else PROMPT_S) or not noted.is_served)
                and noted.began + noted.seconds > fault.began
            ]
            found.setdefault(fault.kind, []).append(max([0.0, *(end - fault.began for end in slow)]))
        return found

    def slow(self) -> list[Noted]:
        """Requests and calls that took over SLOW_S, or came to nothing."""
        return [noted for noted in self.asked() if noted.seconds > SLOW_S or not noted.is_served]

    def slowest(self, count: int = SLOWEST) -> list[Noted]:
        """Requests and calls that took longest, whatever came of them."""
        return sorted(self.asked(), key=lambda noted: -noted.seconds)[:count]

    def has_healed(self, at: float) -> bool:
        """A link between a coordinator and NATS has just healed: what lay in it comes now. Or a coordinator that was
        stopped has just gone on: what it had said when it was stopped, and not sent yet, comes now."""
        cut = [f for f in self.happened if f.kind.startswith("partition of coordinator from") and "NATS" in f.kind]
        stopped = [f for f in self.happened if f.kind == "stop coordinator"]
        return any(f.began <= at <= f.ended + HEALED_S for f in cut) or any(
            f.ended - 0.1 <= at <= f.ended + WENT_ON_S for f in stopped
        )

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

    def by_kind(self) -> list[KindFelt]:
        """What each kind of fault meant to customers, the worst first."""
        recovery = self.recovery()
        found = []
        for kind in recovery:
            felt = [
                noted
                for noted in self.asked()
                if any(
                    fault.kind == kind
                    and fault.began <= noted.began + noted.seconds
                    and noted.began <= fault.ended + AFTERMATH_S
                    for fault in self.happened
                )
            ]
            seconds = sorted(recovery[kind])
            found.append(
                KindFelt(
                    kind=kind,
                    times=len(seconds),
                    asked=len(felt),
                    served=sum(1 for noted in felt if noted.is_served),
                    slowest_s=max((noted.seconds for noted in felt), default=0.0),
                    recovery_median_s=seconds[len(seconds) // 2],
                    recovery_worst_s=seconds[-1],
                )
            )
        return sorted(found, key=lambda each: (each.served - each.asked, -each.recovery_worst_s, each.kind))

    def lines(self) -> list[str]:
        """The report for people."""
        jobs = [noted for noted in self.noted if noted.what.startswith("job:")]
        failed = sum(1 for noted in jobs if noted.wrong and not noted.is_refused_for_room)
        refused = sum(1 for noted in jobs if noted.is_refused_for_room)
        out = [
            f"Chaos with seed {self.seed}: {len(self.happened)} faults in {self.seconds:g} s",
            self._served_line("requests", calls=False),
            self._served_line("calls", calls=True) + "; their task is part of it",
            f"  jobs      {len(jobs):7,}  {failed or 'none'} wrong, {refused} refused in words for want of room; "
            f"{self.leases:,} leases were watched",
        ]
        if self.happened:
            out += ["", *self._table()]
        if slow := self.slow():
            out += ["", f"Took over {SLOW_S:g} s, with the faults felt meanwhile (seconds from its beginning):"]
            for noted in slow:
                missed = " MISSED" if not noted.is_served else ""
                words = f" {noted.wrong[:120]};" if noted.wrong else ""
                at = time.strftime("%H:%M:%S", time.localtime(noted.began))
                felt = self.in_force(noted) or "no fault"
                out.append(f"  {at} {noted.what:16} {noted.seconds:5.1f} s{missed};{words} {felt}")
        grown = {n: (self.memory_after.get(n, 0) - b) >> 20 for n, b in self.memory_before.items()}
        out += [
            "",
            "Memory, MB more than at the start: " + ", ".join(f"{n} {mb:+d}" for n, mb in grown.items()),
            f"Blobs: {self.blobs} there when all had ended, {self.blobs_named} named by jobs; the others a collection "
            "found and deleted",
            *(f"Left out: {words}" for words in self.left_out),
            "",
            *(f"WRONG: {words}" for words in self.wrong),
        ]
        out.append(
            "Nothing is wrong." if not self.wrong else f"{len(self.wrong)} things are wrong; logs: {self.folder}"
        )
        return out

    def _served_line(self, what: str, calls: bool) -> str:
        spread = self.spread(calls)
        if spread is None:
            return f"  {what:8}        none"
        served, count = self.availability(calls)
        share = f"{share_of(served, count)} answered within {DEADLINE_S:g} s, {count - served} missed"
        times = (
            f"median {1000 * spread.median_s:.0f} ms, 99.9 % in {spread.late_s:.1f} s, slowest {spread.slowest_s:.1f} s"
        )
        words = f"; {spread.refused} of them were refused in words while a disk was full" if spread.refused else ""
        return f"  {what:8} {count:8,}  {share}; {times}{words}"

    def spread(self, calls: bool) -> Spread | None:
        """Of requests, or of calls; None where there were none."""
        chosen = [noted for noted in self.asked() if noted.is_call is calls]
        seconds = sorted(noted.seconds for noted in chosen)
        if not seconds:
            return None
        return Spread(
            median_s=seconds[len(seconds) // 2],
            late_s=seconds[min(len(seconds) - 1, int(len(seconds) * 0.999))],
            slowest_s=seconds[-1],
            refused=sum(1 for noted in chosen if noted.is_refused_for_room),
        )

    def _table(self) -> list[str]:
        kinds = self.by_kind()
        width = max(len(each.kind) for each in kinds)
        head = f"{'Fault':{width}}  times  answered in time, of all while it was felt  slowest   prompt again after"
        out = [head, f"{'':{width}}                                                                  median   worst"]
        for each in kinds:
            share = f"{each.served:,} of {each.asked:,}"
            missed = f"{share_of(each.served, each.asked)}" if each.asked else ""
            out.append(
                f"{each.kind:{width}}  {each.times:5}  {share:>23}  {missed:>15}   {each.slowest_s:5.1f} s"
                f"   {each.recovery_median_s:5.1f} s {each.recovery_worst_s:5.1f} s"
            )
        return out

    def as_plain(self) -> dict[str, Any]:
        """The same for programs."""
        served, requests = self.availability()
        calls_served, calls = self.availability(calls=True)
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "deadline_s": DEADLINE_S,
            "requests": requests,
            "requests_served": served,
            "calls": calls,
            "calls_served": calls_served,
            "jobs": sum(1 for noted in self.noted if noted.what.startswith("job:")),
            "leases": self.leases,
            "kinds": [vars(each) for each in self.by_kind()],
            "recovery_s": self.recovery(),
            "missed": [
                {**msgspec.structs.asdict(noted), "fault": self.fault_at(noted)}
                for noted in self.asked()
                if not noted.is_served
            ],
            "slowest": [{**msgspec.structs.asdict(noted), "faults": self.in_force(noted)} for noted in self.slowest()],
            "slow": [{**msgspec.structs.asdict(noted), "faults": self.in_force(noted)} for noted in self.slow()],
            "faults": [vars(fault) for fault in self.happened],
            "memory_grown_bytes": {n: self.memory_after.get(n, 0) - b for n, b in self.memory_before.items()},
            "blobs": self.blobs,
            "blobs_named": self.blobs_named,
            "wrong": self.wrong,
            "left_out": self.left_out,
        }


def share_of(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f} %" if whole else "none"
