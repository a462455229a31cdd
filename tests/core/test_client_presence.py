"""A script that was killed is told from one that is cut off."""

from __future__ import annotations

from fallow.core.client_presence import ASK_AFTER_S, CLOSED_WITHIN_S, GONE_S, ClientPresence


def heard_at(*times_s: float) -> ClientPresence:
    presence = ClientPresence(0.0)
    for at_s in times_s:
        presence.heard(at_s)
    return presence


def test_nobody_listens_a_moment_after_it_was_heard_of() -> None:
    presence = heard_at(100.0)
    presence.nobody_listens(102.0, True)
    assert not presence.is_gone(102.0 + GONE_S - 0.1)
    presence.nobody_listens(104.0, True)
    assert presence.is_gone(102.0 + GONE_S)


def test_one_that_comes_back_is_not_gone() -> None:
    presence = heard_at(100.0)
    presence.nobody_listens(102.0, True)
    presence.heard(100.0)
    assert presence.is_gone(112.0), "nothing new was heard"
    presence.heard(105.0)
    assert not presence.is_gone(200.0)
    presence.nobody_listens(107.0, True)
    presence.listens()
    assert not presence.is_gone(200.0)


def test_one_that_was_silent_before_is_cut_off() -> None:
    presence = heard_at(100.0)
    presence.listens()
    presence.nobody_listens(100.0 + CLOSED_WITHIN_S + 0.1, True)
    presence.nobody_listens(110.0, True)
    assert not presence.is_gone(1000.0)


def test_nothing_is_concluded_by_an_owner_that_was_away_itself_or_has_just_taken_the_job_up() -> None:
    away = heard_at(100.0)
    away.nobody_listens(102.0, False)
    away.nobody_listens(104.0, True)
    new = ClientPresence(100.0)
    new.heard(100.0)
    new.nobody_listens(102.0, True)
    assert not away.is_gone(1000.0)
    assert not new.is_gone(1000.0)


def test_it_is_asked_when_it_is_silent_and_not_too_often() -> None:
    presence = heard_at(100.0)
    assert not presence.is_to_be_asked(100.0 + ASK_AFTER_S - 0.1)
    assert presence.is_to_be_asked(100.0 + ASK_AFTER_S)
    assert not presence.is_to_be_asked(100.1 + ASK_AFTER_S)
    assert presence.is_to_be_asked(100.0 + 2 * ASK_AFTER_S)
    presence.heard(105.0)
    assert not presence.is_to_be_asked(105.9)
