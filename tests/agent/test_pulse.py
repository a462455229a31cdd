"""One timer for many: everyone is called, the most impatient says when, and nobody stops the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from fallow.agent import pulse as pulse_module
from fallow.agent.pulse import RIDE_S, Pulse

DEADLINE_S = 30.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.002)


async def test_all_are_called_at_the_pace_of_the_most_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "PULSE_S", 3600.0)
    pulse, calls = Pulse(), {"patient": 0, "impatient": 0}

    def patient() -> None:
        calls["patient"] += 1

    def impatient() -> float:
        calls["impatient"] += 1
        return 0.0

    pulse.add(patient)
    pulse.add(impatient)
    pulse.within(0.0)
    await until(lambda: calls["impatient"] >= 5)
    assert abs(calls["patient"] - calls["impatient"]) <= 1
    pulse.remove(impatient)
    count = calls["patient"]
    await until(lambda: calls["patient"] > count)
    assert pulse._timer is not None
    assert pulse._timer.when() - asyncio.get_running_loop().time() > 3000.0, "the patient one waits for an hour"
    pulse.remove(patient)
    assert pulse._timer is None


async def test_one_that_fails_stops_nobody_and_goes_on() -> None:
    pulse, calls = Pulse(), [0, 0]

    def fails() -> None:
        calls[0] += 1
        raise ZeroDivisionError

    def works() -> float:
        calls[1] += 1
        return 0.0

    pulse.add(fails)
    pulse.add(works)
    pulse.within(0.0)
    await until(lambda: calls[0] >= 3 and calls[1] >= 3)
    pulse.close()


async def test_a_pulse_is_brought_forward_and_never_put_off() -> None:
    pulse, called = Pulse(), asyncio.Event()
    pulse.add(called.set)
    began_s = time.monotonic()
    pulse.within(0.01)
    pulse.within(50.0)
    async with asyncio.timeout(DEADLINE_S):
        await called.wait()
    assert time.monotonic() - began_s < pulse_module.PULSE_S
    pulse.close()


async def test_a_member_may_change_its_mind_both_ways() -> None:
    pulse, calls = Pulse(), [0]

    def member() -> None:
        calls[0] += 1

    pulse.wants(member, 0.0)
    assert pulse._timer is None, "it is no member yet"
    pulse.add(member)
    loop = asyncio.get_running_loop()
    pulse.wants(member, 0.5)
    assert pulse._timer is not None
    assert pulse._timer.when() - loop.time() <= 0.5
    pulse.wants(member, 20.0)
    assert pulse._timer.when() - loop.time() > 10.0, "what it waited for has come: nobody is woken for it"
    pulse.within(5.0)
    pulse.wants(member, 25.0)
    assert pulse._timer.when() - loop.time() <= 5.0, "another still wants it"
    pulse.wants(member, 0.0)
    await until(lambda: calls[0] == 1)
    pulse.close()


async def test_a_pulse_that_is_due_soon_comes_while_the_agent_is_awake_anyway() -> None:
    pulse, calls = Pulse(), [0]

    def member() -> float:
        calls[0] += 1
        return 2 * RIDE_S

    pulse.ride()
    pulse.add(member)
    pulse.wants(member, 2 * RIDE_S)
    pulse.ride()
    assert calls == [0], "not so soon"
    pulse.wants(member, RIDE_S)
    pulse.ride()
    assert calls == [1]
    pulse.wants(member, RIDE_S / 2)
    pulse.ride()
    assert calls == [1], "the last one is not long ago"
    pulse.close()
