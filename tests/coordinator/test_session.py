"""When a coordinator may speak: not a moment longer than others wait before they take what it owns."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from fallow.coordinator.session import TTL_S, Session
from fallow.store.open import open_store
from fallow.store.protocol import Store
from tests.pool import wait_for_async

uvloop = pytest.importorskip("uvloop", reason="there is no uvloop here: the loop's clock never stands still")


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    yield made
    made.close()


async def _begun(store: Store, owner: str, lapses: list[str]) -> Session:
    async def lapsed() -> None:
        lapses.append(owner)

    session = Session(store, owner, asyncio.get_running_loop(), lapsed, shared=True)
    await session.start()
    return session


def test_a_process_that_is_stopped_amid_its_work_knows_when_it_goes_on(store: Store) -> None:
    """The loop's own clock stands still between two of its turns."""

    async def stopped() -> tuple[bool, bool, bool, bool]:
        session = await _begun(store, "a", [])
        before = session.valid, session.leads
        time.sleep(TTL_S)  # as a SIGSTOP that comes while callbacks run
        after = session.valid, session.leads
        await session.close()
        return *before, *after

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(stopped()) == (True, True, False, False)


async def test_whose_session_others_ended_looks_up_what_it_owns(store: Store) -> None:
    lapses: list[str] = []
    session = await _begun(store, "a", lapses)
    term = session.leader_term
    assert session.valid
    (renewal,) = store.renewals()
    while not store.end_silent(renewal):  # it was renewed meanwhile
        (renewal,) = store.renewals()
    await wait_for_async("it to have seen that", lambda: bool(lapses) and session.valid)
    assert session.leader_term == term + 1
    await session.close()
    assert store.renewals() == []


async def test_one_that_has_gone_without_a_word_is_ended_by_the_other(store: Store) -> None:
    lapses: list[str] = []
    store.renew_session("dead", TTL_S)
    store.acquire_leadership("dead")
    session = await _begun(store, "b", lapses)
    assert not session.leads
    await wait_for_async("b to lead", lambda: session.leads)
    assert [each.owner for each in store.renewals()] == ["b"]
    assert await session.others() == []
    assert lapses == []
    await session.close()
