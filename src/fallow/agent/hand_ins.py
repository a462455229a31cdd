"""From what a worker reports to what the owner hears: hand-ins that fit into messages."""

from __future__ import annotations

from fallow.agent.slot_effects import Deliver, Held
from fallow.agent.worker_api import Report
from fallow.model.ids import Interval, NodeId
from fallow.model.parts import Death, ResultPage
from fallow.wire.messages import HandIn

HAND_IN_BYTES = 2 * 1024 * 1024
"""Results beyond this go into a further hand-in."""


def make_hand_ins(
    node_id: NodeId,
    slot: int,
    held: Held,
    report: Report,
    give_back: tuple[Interval, ...] = (),
    deaths: tuple[Death, ...] = (),
    wasted_s: float = 0.0,
) -> list[Deliver]:
    """As few hand-ins as fit into messages, numbered on from the lease's last one; the last carries the end, so that
    nothing is taken for lost that is still to come. `report.give_back` is left to the caller: see `give_back`."""
    runs = split_results(report.results)
    tasks = sum(page.stop - page.start for page in report.results)
    delivers: list[Deliver] = []
    for at, results in enumerate(runs):
        held.seq += 1
        is_last = at == len(runs) - 1
        share = sum(page.stop - page.start for page in results) / tasks if tasks else 1.0
        hand_in = HandIn(
            job_id=held.job_id,
            node_id=node_id,
            slot=slot,
            token=held.token,
            seq=held.seq,
            start=held.start,
            stop=held.stop,
            results=results,
            give_back=give_back if is_last else (),
            deaths=deaths if is_last else (),
            retry_later=report.retry_later if is_last else (),
            ended=report.ended and is_last,
            run_s=report.run_s * share,
            reduced=report.reduced,
            cpu_s=report.cpu_s * share,
            wasted_s=wasted_s if is_last else 0.0,
        )
        digests = {page.page.digest for page in results} if report.files else set()
        files = {digest: path for digest, path in report.files.items() if digest in digests}
        delivers.append(Deliver(hand_in, files))
    return delivers


def split_results(results: tuple[ResultPage, ...]) -> list[tuple[ResultPage, ...]]:
    """Cut into runs of at most HAND_IN_BYTES each (one page may be more); at least one run, perhaps empty."""
    if sum(len(page.page.data or b"") for page in results) <= HAND_IN_BYTES:
        return [results]
    runs: list[list[ResultPage]] = [[]]
    size = 0
    for page in results:
        length = len(page.page.data or b"")
        if runs[-1] and size + length > HAND_IN_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(page)
        size += length
    return [tuple(run) for run in runs]
