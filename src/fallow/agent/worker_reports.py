"""What a worker says of its order, in the agent's own types."""

from __future__ import annotations

from fallow.agent.worker_api import Report
from fallow.agent.worker_files import WorkerFiles
from fallow.model.ids import Digest, Interval
from fallow.model.job import Blob
from fallow.model.parts import Death
from fallow.wire.messages import ResultPage, RetryLater
from fallow.worker import orders


def report_of(report: orders.Report, give_back: tuple[Interval, ...], files: WorkerFiles) -> Report:
    """The report, with its pages' files where the agent finds them."""
    paths: dict[str, str] = {}
    for page in report.results:
        if page.path and page.digest not in paths:
            paths[page.digest] = files.on_host(page.path)
        elif page.path:  # the same results once more
            files.drop(page.path)
    return Report(
        token=report.token,
        results=tuple(_result_page(page) for page in report.results),
        files=paths,
        give_back=give_back,
        retry_later=tuple(RetryLater(*later) for later in report.retry_later),
        ended=report.ended,
        run_s=report.run_s,
        cpu_s=report.cpu_s,
        reduced=report.reduced,
        deaths=tuple(Death(index, "no_room", words) for index, _, words in report.no_room),
        no_room_bytes=max((size for _, size, _ in report.no_room), default=0),
    )


def _result_page(page: orders.WrittenPage) -> ResultPage:
    blob = Blob(Digest(page.digest), page.size, page.data)
    return ResultPage(page.start, page.stop, page.start, blob, page.failed_count, page.failed)
