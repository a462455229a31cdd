"""What the report of a run says: who was served in time, what each kind of fault meant, and when it was over."""

from __future__ import annotations

import json

import pytest

from tests.chaos.markdown import markdown
from tests.chaos.report import Happened, Noted, Report
from tests.chaos.run import as_json

FULL = "PoolRefused: the pool's store is full: the disk of the store x is full, so the pool takes no new work."


def noted(what: str, began: float, seconds: float, wrong: str = "") -> Noted:
    return Noted(what, began, seconds, wrong, "")


@pytest.fixture
def report() -> Report:
    made = Report(seed=3, seconds=60.0, folder="/somewhere", since=100.0)
    made.happened = [Happened("kill a worker", "n1", 110.0, 110.0), Happened("stop NATS server", "nats1", 130.0, 134.0)]
    made.noted = [
        noted("call", 90.0, 9.0),  # a cold start
        noted("ask:pool", 105.0, 0.1),
        noted("call", 109.9, 3.0),
        noted("ask:nodes", 111.0, 1.5),
        noted("call", 120.0, 2.4),
        noted("submit", 131.0, 6.0),
        noted("ask:jobs", 132.0, 0.2, "TimeoutError: no answer"),
        noted("submit", 133.0, 0.1, FULL),
        noted("job:short", 131.0, 50.0, "Wrong: 3 results of 4"),
    ]
    return made


def test_availability_counts_what_was_asked_once_all_was_warm(report: Report) -> None:
    assert report.availability() == (3, 5)
    assert report.availability(calls=True) == (2, 2)
    assert [each.what for each in report.slow()] == ["call", "call", "submit", "ask:jobs"]


def test_what_lay_in_a_cut_link_may_come_late(report: Report) -> None:
    report.happened.append(Happened("partition of coordinator from all NATS servers", "c2->nats", 140.0, 145.0))
    assert [report.has_healed(at) for at in (132.0, 139.0, 145.5, 147.0)] == [False, False, True, False]


def test_what_lay_in_a_stopped_coordinator_may_come_when_it_goes_on(report: Report) -> None:
    report.happened.append(Happened("stop coordinator", "c2", 140.0, 145.0))
    assert [report.has_healed(at) for at in (141.0, 145.2, 146.0)] == [False, True, False]


def test_what_still_waits_when_the_next_fault_begins_is_that_ones(report: Report) -> None:
    report.noted.append(noted("call", 129.5, 8.0))
    assert report.recovery()["kill a worker"] == [pytest.approx(2.9)]
    assert report.recovery()["stop NATS server"] == [pytest.approx(7.5)]


def test_each_kind_of_fault_has_what_was_felt_of_it_and_when_it_was_over(report: Report) -> None:
    worst, other = report.by_kind()
    assert (worst.kind, worst.times, worst.asked, worst.served, worst.slowest_s) == ("stop NATS server", 1, 3, 1, 6.0)
    assert worst.recovery_worst_s == pytest.approx(7.0)
    assert (other.kind, other.asked, other.served) == ("kill a worker", 2, 2)
    assert other.recovery_worst_s == pytest.approx(2.9), "a call may wait for a slot: 2.4 s are no sign of a fault"


def test_the_report_is_for_people_and_for_programs(report: Report) -> None:
    report.wrong = ["job:short: Wrong: 3 results of 4"]
    text = "\n".join(report.lines())
    assert "60.000 % answered within 5 s, 2 missed" in text
    assert "1 of them were refused in words while a disk was full" in text
    assert "submit             6.0 s MISSED; stop NATS server (nats1) -1.0..+3.0 s" in text
    assert text.endswith("1 things are wrong; logs: /somewhere")
    plain = json.loads(as_json(report))
    assert (plain["requests"], plain["requests_served"], plain["calls_served"]) == (5, 3, 2)
    assert plain["kinds"][0]["kind"] == "stop NATS server"
    assert [each["what"] for each in plain["missed"]] == ["submit", "ask:jobs"]


def test_the_tables_say_what_a_long_run_is_judged_by(report: Report) -> None:
    text = markdown(report, "scripts/chaos --seed 3")
    assert text.startswith("`scripts/chaos --seed 3` (1970-01-01): 2 faults in 1 minutes, 1 jobs")
    assert "| requests | 5 | 60.000 % | 2 | 200 ms | 6.0 s | 6.0 s |" in text
    assert "| stop NATS server | 1 | 7.0 s | 7.0 s | 6.0 s | 1 of 3 |" in text
    slowest = text.split("The slowest 7")[1]
    assert slowest.count(" s") > 7
    assert "| submit | 6.0 s, missed | stop NATS server (nats1) -1.0..+3.0 s |" in slowest
    assert slowest.index("| submit | 6.0 s") < slowest.index("| call | 3.0 s |"), "the slowest first"
