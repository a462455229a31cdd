"""Numbers and bars for people."""

import io
import re

import msgspec
import pytest
from rich.console import Console

from fallow.cli.listings import done_words
from fallow.cli.show import as_plain, bytes_words, count_words, duration_words, print_table, progress_bar, sparkline
from fallow.cli.top import Look, Rates, render
from fallow.model.ids import JobId, NodeId
from fallow.model.job import JobCounts, JobInfo, JobKind
from fallow.model.node import NodeInfo, NodeSpec
from fallow.model.states import NodeState


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (250, "4 min 10 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.mark.parametrize(("number", "words"), [(950, "950"), (12345, "12.3k"), (4_100_000, "4100k"), (2.5e7, "25.0M")])
def test_counts(number: float, words: str) -> None:
    assert count_words(number) == words


def test_sizes() -> None:
    assert [bytes_words(n) for n in (12, 2048, 3 * 1024**3)] == ["12 B", "2.0 KB", "3.0 GB"]


def test_sparkline_and_bar() -> None:
    assert sparkline([0, 5, 10], 8) == "▁▄█"
    assert sparkline([], 8) == ""
    assert sparkline([0, 0], 8) == "▁▁"
    assert progress_bar(5, 10, 4) == "██░░"
    assert progress_bar(5, -1, 3) == "···"
    assert progress_bar(0, 0, 2) == "██"


def test_tables_align_and_say_when_they_are_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "N"), [("a", "10"), ("long", "5")], "nothing")
    print_table(("NAME",), [], "nothing")
    assert capsys.readouterr().out == "NAME   N\na     10\nlong   5\nnothing\n"


def job(done: int) -> JobInfo:
    return JobInfo(
        job_id=JobId("job-aaaaaa"), name="a", kind=JobKind.MAP, state="running", reason="",
        counts=JobCounts(done=done), total=100, detached=False, account="default", created_unix_s=0.0,
    )  # fmt: skip


def test_what_is_done_of_a_job_in_words() -> None:
    assert done_words(job(1)) == "1/100 tasks done"
    assert done_words(msgspec.structs.replace(job(1), kind=JobKind.CALLS)) == "1 call done"
    assert done_words(msgspec.structs.replace(job(3), total=-1)) == "3/0+ tasks done"


def test_rates_come_from_two_looks() -> None:
    rates = Rates()
    rates.add(1.0, (job(10),))
    assert rates.of("job-aaaaaa") == 0
    rates.add(3.0, (job(30),))
    assert rates.of("job-aaaaaa") == 10
    assert list(rates.total) == [10]
    rates.add(4.0, ())
    assert rates.by_job == {}


def test_json_names_fields() -> None:
    plain = as_plain((job(3),))
    assert plain[0]["counts"]["done"] == 3
    assert plain[0]["kind"] == "map"


NODE = NodeInfo(
    NodeSpec(NodeId("n"), "a-node-of-the-lab", 2, 2, 16 << 30, 1 << 40, "linux-x86_64", ("3.11",), "0.1.0"),
    NodeState.ALIVE, "", 100.0, busy_slots=1, tasks_done=123_456, load=0.5, memory_used_bytes=3 << 30,
)  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_top_fits_its_terminal(width: int) -> None:
    jobs = tuple(
        msgspec.structs.replace(job(50), name=f"[/bold] a name of some length {n}", state=state, job_id=JobId(f"j{n}"))
        for n, state in enumerate(["cancelled"] * 20 + ["running"])
    )
    rates = Rates()
    rates.add(1.0, jobs)
    rates.add(2.0, tuple(msgspec.structs.replace(one, counts=JobCounts(done=60)) for one in jobs))
    said = io.StringIO()
    console = Console(file=said, width=width, height=24, color_system=None)
    console.print(render(Look(101.0, (NODE,), jobs), rates, "127.0.0.1:7461", "", width, 24))
    lines = said.getvalue().splitlines()
    assert len(lines) <= 24
    assert max(len(line) for line in lines) <= width
    running = next(line for line in lines if "running" in line)
    assert running.startswith("[/bold] a n")
    assert "50/100" in running
    assert re.search(r"^and \d+ more", said.getvalue(), re.M)
    node = next(line for line in lines if line.startswith("a-node"))
    assert "alive" in node
    assert "1/2" in node
    assert ("RATE" in said.getvalue()) == (width >= 60)
    assert ("PROGRESS" in said.getvalue()) == (width >= 80)
