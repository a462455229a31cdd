"""What a coordinator takes in: limits of accounts, and nothing new while it is behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fallow.cli.account_limits import account_limits
from fallow.coordinator.load import EVERY_S, LoadWatch
from fallow.coordinator.questions import DEADLINE_S, WAITING_LIMIT, Questions, StoreBusy
from fallow.core.admission import SHED_AFTER_S
from fallow.model.errors import SettingError
from fallow.model.job import AccountLimits
from fallow.wire.connection import Connection
from tests.pool import Pool

ONE_SLOT = """
    import fallow, time
    app = fallow.App("slots")

    @app.function
    def when(_):
        began = time.monotonic()
        time.sleep(0.02)
        return began, time.monotonic()

    times = sorted(when.map(range(40)))
    print(sum(a[1] > b[0] for a, b in zip(times, times[1:])))
"""
THREE_JOBS = """
    import fallow
    app = fallow.App("jobs")

    @app.function
    def nap(seconds):
        import time
        time.sleep(seconds)

    @app.function
    def nested():
        nap.spawn(600.0)

    nap.spawn(600.0)
    nested.remote()
    print(sorted(info.account for info in fallow.jobs(active=True)))
    try:
        nap.spawn(600.0)
    except fallow.PoolRefused as error:
        print(error.kind, error)
    for info in fallow.jobs(active=True):
        if info.name == "nap":
            fallow.job(info.job_id).cancel()
            break
    nap.spawn(600.0)
    print("taken in")
"""


async def test_a_coordinator_that_hears_late_takes_no_new_work_until_it_has_caught_up(connection: Connection) -> None:
    load, loop = LoadWatch(connection), asyncio.get_running_loop()
    await load.start()
    now = loop.time()
    load.tick(now)
    load.tick(now + SHED_AFTER_S + 0.5)  # nothing was heard meanwhile
    assert "2.5 s behind" in load.overload.refusal()
    async with asyncio.timeout(30):
        while load.overload.sheds:
            await asyncio.sleep(0.01)
            load.tick(loop.time())
    assert load.overload.behind_s < SHED_AFTER_S


async def test_a_word_that_was_lost_with_its_connection_says_nothing(connection: Connection) -> None:
    load, loop = LoadWatch(connection), asyncio.get_running_loop()
    await load.start()
    load.tick(now := loop.time())
    load.tick(now + SHED_AFTER_S * 2)
    assert load.overload.sheds
    for callback in connection.on_reconnect:
        callback()
    assert not load.overload.sheds
    load.tick(now + SHED_AFTER_S * 2 + EVERY_S)
    assert not load.overload.sheds


async def test_questions_to_the_store_are_bounded_and_not_put_when_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ThreadPoolExecutor(1) as reader:
        loop = asyncio.get_running_loop()
        questions, gate = Questions(loop, reader), asyncio.Event()
        assert await questions.ask(lambda a: a + 1, 1) == 2
        hold = loop.run_in_executor(reader, lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result())
        put: list[int] = []
        asked = [asyncio.ensure_future(questions.ask(put.append, at)) for at in range(WAITING_LIMIT)]
        await asyncio.sleep(0)
        with pytest.raises(StoreBusy, match=f"{WAITING_LIMIT} questions wait"):
            await questions.ask(put.append, -1)
        monkeypatch.setattr("fallow.coordinator.questions.DEADLINE_S", -DEADLINE_S)
        gate.set()
        await hold
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert put == []
        assert all(isinstance(answer, StoreBusy) for answer in answers)


@pytest.mark.slow
def test_limits_of_accounts(make_pool: Callable[..., Pool]) -> None:
    limits = ("--account-limit", "team-a:jobs=3", "--account-limit", "*:slots=1")
    pool = make_pool(slots=2, arguments=limits)
    alone = pool.script(ONE_SLOT)
    assert alone.stdout == "0\n", f"two at once {alone.stdout} times: {alone.stderr}"
    pool.env["FALLOW_ACCOUNT"] = "team-a"
    done = pool.script(THREE_JOBS)
    accounts, refused, *rest = done.stdout.splitlines()
    assert accounts == "['team-a', 'team-a', 'team-a']", "what a task submits is for whom its job is"
    assert "limit the account 'team-a' has 3 jobs in the pool, and may have 3 at once" in refused
    assert rest == ["taken in"], done.stderr


def test_limits_that_cannot_be_read_are_refused_in_words() -> None:
    assert account_limits(["team-a:jobs=20", "*:jobs=5,slots=64"]) == {
        "team-a": AccountLimits(jobs=20),
        "*": AccountLimits(jobs=5, slots=64),
    }
    for text in ("team-a", "a b:jobs=1", "a:jobs=0", "a:jobs=1,jobs=2", "a:cores=1", ":jobs=1", "a:slots=-1"):
        with pytest.raises(SettingError, match="expected ACCOUNT:jobs=N,slots=N"):
            account_limits([text])
    with pytest.raises(SettingError, match="has its limits already"):
        account_limits(["a:jobs=1", "a:slots=1"])
