"""The watch over leases: two holders are told of, what passes from one to the other is not."""

from __future__ import annotations

import pytest

from fallow.model.ids import Digest, JobId, NodeId
from fallow.model.job import Blob
from fallow.model.parts import HeldLease, ResultPage
from fallow.wire.messages import HandIn, Held, Revoke
from tests.chaos.two_holders import TwoHolders

JOB = JobId("job-aaaaaa")
ONE, TWO = NodeId("one"), NodeId("two")


def held(node: NodeId, counter: int, start: int, stop: int, index: int = -1) -> Held:
    return Held(JOB, node, node, "session", (HeldLease(JOB, (1, counter), 0, start, stop, index),))


def name_both(book: TwoHolders, seconds: int, first_stop: int = 10, index: int = -1) -> None:
    for second in range(seconds):
        book.held(held(ONE, 1, 0, first_stop, index), second)
        book.held(held(TWO, 2, 5, 20), second + 0.5)


def test_two_that_go_on_with_the_same_tasks_are_told_of_once() -> None:
    book = TwoHolders()
    name_both(book, 3)
    assert book.wrong == []
    name_both(book, 9)
    assert len(book.wrong) == 1
    assert "(5, 10)" in book.wrong[0]


@pytest.mark.parametrize(("first_stop", "index"), [(5, -1), (6, -1), (10, 9)])
def test_what_does_not_overlap_or_is_one_doubled_task_is_fine(first_stop: int, index: int) -> None:
    book = TwoHolders()
    name_both(book, 9, first_stop, index)
    assert book.wrong == []


def test_what_was_given_back_handed_in_or_revoked_is_not_held() -> None:
    page = ResultPage(7, 10, 7, Blob(Digest("00"), 1, b"x"))
    for message in (
        HandIn(JOB, ONE, 0, (1, 1), 0, 0, 10, give_back=((5, 10),)),
        HandIn(JOB, ONE, 0, (1, 1), 0, 0, 10, results=(page,), give_back=((5, 7),)),
    ):
        book = TwoHolders()
        book.hand_in(message)
        name_both(book, 9)
        assert book.wrong == []
    book = TwoHolders()
    for second in range(9):
        name_both(book, 1)
        book.revoke(Revoke(JOB, 1, ((1, 1),)), ONE)
        book.held(held(TWO, 2, 5, 20), second)
    assert book.wrong == []


def test_a_node_that_was_silent_is_given_the_time_to_be_told() -> None:
    book = TwoHolders()
    book.held(held(ONE, 1, 0, 10), 0.0)
    for tenth in range(60):
        book.held(held(TWO, 2, 5, 20), tenth / 10)
    book.held(held(ONE, 1, 0, 10), 6.0)
    book.held(held(TWO, 2, 5, 20), 6.1)
    assert book.wrong == []
    book.held(Held(JOB, ONE, ONE, "session", ()), 7.0)
    book.held(held(TWO, 2, 5, 20), 9.1)
    assert book.wrong == []
