"""What a sandboxed worker may say: each lie is found, and nothing that Fallow's own worker says is doubted."""

from __future__ import annotations

import blake3
import pytest

from fallow.agent.doubts import ASKS_AT_ONCE, ASKS_OPEN, ASKS_PER_S, COST_OF, RETRY_DELAY_MAX_S, WORDS_LIMIT, Doubts
from fallow.model.job import INLINE_LIMIT_BYTES
from fallow.worker import orders
from fallow.worker.pages import FAILED_LIST_LIMIT
from fallow.worker.runner import RETRY_LATER_LIMIT

TOKEN = (3, 7)
DATA = b"a page"


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def page(start: int, stop: int, data: bytes | None = DATA, **more: object) -> orders.WrittenPage:
    said: dict[str, object] = {"digest": blake3.blake3(data or b"").hexdigest(), "size": len(data or b"12345"), **more}
    return orders.WrittenPage(start, stop, data=data, **said)  # type: ignore[arg-type]


def report(*pages: orders.WrittenPage, **more: object) -> orders.Report:
    return orders.Report(**{"token": TOKEN, "results": pages, **more})  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def doubts(clock: Clock) -> Doubts:
    made = Doubts(clock)
    made.begin(TOKEN, 10, 20)
    return made


def test_an_honest_worker_is_not_doubted(doubts: Doubts, clock: Clock) -> None:
    clock.now_s += 2.0
    said = [
        report(page(10, 13), run_s=1.0, cpu_s=0.9),
        report(page(15, 16), page(13, 15, failed_count=2, failed=(13, 14)), run_s=2.0),
        report(page(16, 17, None, path="/scratch/result-1"), retry_later=((17, 1, 60.0),), run_s=2.0),
        report(give_back=((18, 20),), ended=True, run_s=2.5),
    ]
    assert [doubts.about(message) for message in said] == [""] * 4
    doubts.begin((3, 8), 10, 20)
    assert doubts.about(report(page(10, 20), token=(3, 8), ended=True)) == ""


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (report(page(10, 11), token=(3, 8)), "does not have"),
        (report(), "reports nothing"),
        (report(page(9, 11)), "not in its lease"),
        (report(page(19, 21)), "not in its lease"),
        (report(page(12, 12)), "not in its lease"),
        (report(page(10, 12), page(11, 13)), "twice"),
        (report(page(10, 11, digest="ABC")), "no digest"),
        (report(page(10, 11, digest="../" * 21 + "a")), "no digest"),
        (report(page(10, 11, b"", size=0)), "no digest or size"),
        (report(page(10, 11, None, path="/scratch/r", size=1 << 60)), "no digest or size"),
        (report(page(10, 11, size=5)), "not of the size"),
        (report(page(10, 11, path="/scratch/too")), "not of the size"),
        (report(page(10, 11, b"x" * (INLINE_LIMIT_BYTES + 1))), "not of the size"),
        (report(page(10, 11, digest="0" * 64)), "another digest"),
        (report(page(10, 11, None)), "may not write"),
        (report(page(10, 11, None, path="/etc/passwd")), "may not write"),
        (report(page(10, 11, None, path="/scratch/../etc/passwd")), "may not write"),
        (report(page(10, 11, None, path="/scratch/deep/result")), "may not write"),
        (report(page(10, 11, None, path="/scratch/.hidden")), "may not write"),
        (report(page(10, 11, None, path="/scratch/new\nline")), "may not write"),
        (report(page(10, 11, failed_count=2)), "cannot be"),
        (report(page(10, 11, failed_count=-1)), "cannot be"),
        (report(page(10, 11, failed=(10,) * (FAILED_LIST_LIMIT + 1))), "cannot be"),
        (report(page(10, 11, failed_count=1, failed=(11,))), "not in the page"),
        (report(ended=True, give_back=((10, 11), (12, 13))), "more than it can"),
        (report(ended=True, give_back=((10, 21),)), "gives back tasks"),
        (report(ended=True, give_back=((15, 14),)), "gives back tasks"),
        (report(ended=True, retry_later=((10, 0, 1.0),) * (RETRY_LATER_LIMIT + 1)), "more than it can"),
        (report(ended=True, retry_later=((20, 0, 1.0),)), "puts off tasks that"),
        (report(ended=True, retry_later=((10, -1, 1.0),)), "puts off tasks that"),
        (report(ended=True, retry_later=((10, 0, RETRY_DELAY_MAX_S + 1),)), "too long"),
        (report(ended=True, retry_later=((10, 0, float("nan")),)), "too long"),
        (report(ended=True, run_s=1.5), "more time than has passed"),
        (report(ended=True, run_s=float("nan")), "more time than has passed"),
        (report(ended=True, run_s=-0.1), "more time than has passed"),
        (report(ended=True, cpu_s=float("inf")), "processor time"),
        (orders.SetupFailed("x" * (WORDS_LIMIT + 1), ""), "too many"),
        (orders.SetupFailed("", "x" * (WORDS_LIMIT + 1)), "too many"),
    ],
)
def test_each_lie_is_found(doubts: Doubts, lie: orders.FromWorker, words: str) -> None:
    assert words in doubts.about(lie)


def test_tasks_are_handed_in_once_over_all_reports_and_none_after_the_end(doubts: Doubts) -> None:
    assert doubts.about(report(page(10, 12))) == ""
    assert "twice" in doubts.about(report(page(11, 12)))
    assert doubts.about(report(page(12, 13), ended=True)) == ""
    assert "does not have" in doubts.about(report(page(13, 14)))


def test_a_worker_without_an_order_reports_nothing() -> None:
    assert "does not have" in Doubts().about(report(page(10, 11)))


def test_requests_are_bounded_by_rate_and_by_what_waits(doubts: Doubts, clock: Clock) -> None:
    ask = orders.Ask(1, "request", b"")
    for _ in range(ASKS_AT_ONCE):
        assert doubts.about(ask) == ""
        doubts.answered()
    assert "asks too much" in doubts.about(ask)
    doubts.answered()
    clock.now_s += 0.1
    for _ in range(int(ASKS_PER_S * 0.1) - 2):
        assert doubts.about(ask) == ""
        doubts.answered()
    waiting = Doubts(clock)
    assert [waiting.about(ask) for _ in range(ASKS_OPEN)] == [""] * ASKS_OPEN
    assert "asks too much" in waiting.about(ask)


def test_new_clients_are_dear_and_what_there_is_not_is_no_request(doubts: Doubts, clock: Clock) -> None:
    said = [doubts.about(orders.Ask(serial, "pool", b"")) for serial in range(int(ASKS_AT_ONCE / COST_OF["pool"]) + 1)]
    assert set(said[:-1]) == {""}
    assert "asks too much" in said[-1]
    assert "what there is not" in Doubts(clock).about(orders.Ask(1, "secrets", b""))
