"""What is recorded of a job's results: where each is, by index and in order of recording."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fallow.core.intervals import IntervalSet
from fallow.model.ids import Interval, JobId, NodeId
from fallow.model.job import Blob
from fallow.model.parts import FaultPage, ResultPage
from fallow.store.protocol import PutResultPage


@dataclass(slots=True)
class Recorded:
    """A result page or a fault. `data` of an inline page may have been let go: the store has it."""

    seq: int
    start: int
    stop: int
    page_start: int
    page: Blob
    failed_count: int = 0
    failed: tuple[int, ...] = ()
    fault: tuple[str, str, str] | None = None
    node: str = ""
    inline: bool = True

    @property
    def size(self) -> int:
        return self.page.size


def recorded_page(seq: int, page: ResultPage, node: NodeId) -> Recorded:
    return Recorded(
        seq=seq,
        start=page.start,
        stop=page.stop,
        page_start=page.page_start,
        page=page.page,
        failed_count=page.failed_count,
        failed=page.failed,
        node=node,
        inline=page.page.data is not None,
    )


def recorded_fault(seq: int, fault: FaultPage, node: NodeId | None) -> Recorded:
    return Recorded(
        seq=seq,
        start=fault.index,
        stop=fault.index + 1,
        page_start=fault.index,
        page=Blob("", 0, b""),  # type: ignore[arg-type]
        failed_count=1,
        failed=(fault.index,),
        fault=(fault.kind, fault.message, fault.detail),
        node=node or "",
    )


class ResultIndex:
    """Recorded pages, disjoint by index. Only what is durable is in here."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._by_start: dict[int, Recorded] = {}
        self._by_seq: dict[int, Recorded] = {}
        self._seqs: list[int] = []
        self.bytes = 0
        """Bytes of all pages here, inline or not."""

    def __len__(self) -> int:
        return len(self._by_start)

    def __iter__(self) -> Iterator[Recorded]:
        return iter([self._by_start[start] for start in self._starts])

    def add(self, entry: Recorded) -> None:
        if entry.start in self._by_start:
            return
        if not self._starts or entry.start > self._starts[-1]:
            self._starts.append(entry.start)
        else:
            insort(self._starts, entry.start)
        self._by_start[entry.start] = entry
        if not self._seqs or entry.seq > self._seqs[-1]:
            self._seqs.append(entry.seq)
        else:
            insort(self._seqs, entry.seq)
        self._by_seq[entry.seq] = entry
        self.bytes += entry.size

    def from_index(self, cursor: int) -> Iterator[Recorded]:
        """Pages that follow each other without a gap from `cursor` on (the first may begin before it)."""
        at = bisect_right(self._starts, cursor) - 1
        if at < 0:
            return
        while at < len(self._starts):
            entry = self._by_start[self._starts[at]]
            if not entry.start <= cursor < entry.stop:
                return
            yield entry
            cursor = entry.stop
            at += 1

    def from_seq(self, seq: int) -> Iterator[Recorded]:
        """Pages in order of recording, from `seq` on."""
        at = bisect_right(self._seqs, seq - 1)
        for number in self._seqs[at:]:
            yield self._by_seq[number]

    def drop_below(self, index: int) -> list[Recorded]:
        """Forget the pages that end at or before `index`."""
        gone: list[Recorded] = []
        count = 0
        for start in self._starts:
            entry = self._by_start[start]
            if entry.stop > index:
                break
            gone.append(entry)
            count += 1
        del self._starts[:count]
        self._forget(gone)
        return gone

    def drop_below_seq(self, seq: int) -> list[Recorded]:
        """Forget the pages recorded before `seq`."""
        at = bisect_right(self._seqs, seq - 1)
        gone = [self._by_seq[number] for number in self._seqs[:at]]
        if gone:
            starts = {entry.start for entry in gone}
            self._starts = [start for start in self._starts if start not in starts]
            self._forget(gone)
        return gone

    def drop(self, entry: Recorded) -> None:
        """Forget one page."""
        if self._by_start.get(entry.start) is not entry:
            return
        at = bisect_right(self._starts, entry.start) - 1
        del self._starts[at]
        del self._seqs[bisect_right(self._seqs, entry.seq) - 1]
        del self._by_start[entry.start]
        del self._by_seq[entry.seq]
        self.bytes -= entry.size

    def _forget(self, gone: list[Recorded]) -> None:
        if not gone:
            return
        for entry in gone:
            del self._by_start[entry.start]
            del self._by_seq[entry.seq]
            self.bytes -= entry.size
        self._seqs = [seq for seq in self._seqs if seq in self._by_seq]

    def failed_intervals(self) -> list[Interval]:
        """Where something failed: single tasks, or a whole page whose list of failures was cut."""
        found: list[Interval] = []
        for entry in self:
            if entry.fault is not None or entry.failed_count > len(entry.failed):
                found.append((entry.start, entry.stop))
            else:
                found += [(index, index + 1) for index in entry.failed]
        return found

    def clear(self) -> None:
        self._starts.clear()
        self._by_start.clear()
        self._by_seq.clear()
        self._seqs.clear()
        self.bytes = 0


def put_result(job_id: JobId, epoch: int, entry: Recorded) -> PutResultPage:
    """The write that keeps it."""
    return PutResultPage(
        job_id=job_id,
        epoch=epoch,
        seq=entry.seq,
        start=entry.start,
        stop=entry.stop,
        page_start=entry.page_start,
        page=entry.page,
        failed_count=entry.failed_count,
        failed=entry.failed,
        fault=entry.fault,
        node=entry.node,
    )


def in_order(
    pages: list[ResultPage], faults: list[FaultPage], cursor: int
) -> tuple[list[ResultPage], list[FaultPage], int]:
    """Both lists are by index already; readers merge them. What is beyond a gap stays out."""
    marks = sorted([(page.start, page.stop) for page in pages] + [(f.index, f.index + 1) for f in faults])
    for start, stop in marks:
        if start > cursor:
            break
        cursor = max(cursor, stop)
    return [p for p in pages if p.start < cursor], [f for f in faults if f.index < cursor], cursor


def without(entry: Recorded, intervals: Sequence[tuple[int, int]]) -> list[Recorded]:
    """The parts of a recorded page outside these intervals."""
    left = IntervalSet([(entry.start, entry.stop)])
    for start, stop in intervals:
        left.remove(start, stop)
    pieces = []
    for start, stop in left:
        piece = Recorded(
            seq=entry.seq,
            start=start,
            stop=stop,
            page_start=entry.page_start,
            page=entry.page,
            node=entry.node,
            inline=entry.inline,
        )
        pieces.append(piece)
    return pieces
