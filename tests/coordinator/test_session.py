"""When a coordinator may speak: not a moment longer than others wait before they take what it owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fallow.coordinator.session import TTL_S, Session
from fallow.store.open import open_store
from fallow.store.protocol import Store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    yield made
    made.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def _begun(store: Store, owner: str, lapses: list[str]) -> Session:
    async def lapsed() -> None:
        lapses.append(owner)

    session = Session(store, owner, asyncio.get_running_loop(), lapsed, shared=True)
    await session.start()
    return session


async def test_whose_session_others_ended_looks_up_what_it_owns(store: Store) -> None:
    lapses: list[str] = []
    session = await _begun(store, "a", lapses)
    term = session.leader_term
    assert session.valid
    (renewal,) = store.renewals()
    while not store.end_silent(renewal):  # it was renewed meanwhile
        (renewal,) = store.renewals()
    await until(lambda: bool(lapses) and session.valid)
    await until(lambda: session.leader_term > term)  # it leads anew, a moment after it speaks
    await session.close()
    assert store.renewals() == []


@pytest.mark.slow
async def test_one_that_has_gone_without_a_word_is_ended_by_the_other(store: Store) -> None:
    lapses: list[str] = []
    store.renew_session("dead", TTL_S)
    store.acquire_leadership("dead")
    session = await _begun(store, "b", lapses)
    assert not session.leads
    await until(lambda: session.leads)
    assert [each.owner for each in store.renewals()] == ["b"]
    assert await session.others() == []
    assert lapses == []
    await session.close()
