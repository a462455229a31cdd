"""The thread of the sensors and the shell around the policy: what is stopped, allowed and told."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any

import pytest

from fallow.agent.owner import watch as watch_module
from fallow.agent.owner.find import Finder
from fallow.agent.owner.sensing import Sensing
from fallow.agent.owner.sensor import Absent, Draft, Failed, InputSensor, Sensor
from fallow.agent.owner.watch import SILENT, Watch
from fallow.core.owner_policy import NOTIFIED_REST_LOOK_S
from fallow.core.owner_readings import GpuReading, Input, Readings
from fallow.model.lending import LendingSettings, OwnerSettings

from .conftest import DEADLINE_S

LENDING = LendingSettings(owner=OwnerSettings(idle_s=60.0, settle_s=0.0))


class Hand(InputSensor):
    """A person's hand: `idle_s` is what it says, a byte in its pipe is input."""

    name = "hand"

    def __init__(self) -> None:
        self.idle_s: float | None = 1e6
        self.opened = self.closed = 0
        self.fault: Exception | None = None
        self.blocks = threading.Event()
        self.blocks.set()
        self.out, self.into = os.pipe()
        os.set_blocking(self.out, False)

    def open(self) -> None:
        self.opened += 1

    def read(self, draft: Draft) -> None:
        self.blocks.wait()
        if self.fault is not None:
            raise self.fault
        draft.inputs[self.name] = Input("hand", self.idle_s, notifies=True)

    def files(self) -> list[int]:
        return [self.out]

    def news(self) -> bool:
        os.read(self.out, 100)
        return True

    def touch(self) -> None:
        self.idle_s = 0.0
        os.write(self.into, b"!")

    def close(self) -> None:
        self.closed += 1

    def end(self) -> None:
        self.blocks.set()
        os.close(self.out)
        os.close(self.into)


class Gpu(Sensor):
    name = "gpu"

    def __init__(self) -> None:
        self.share = 0.0

    def read(self, draft: Draft) -> None:
        draft.gpus = {"GPU-1": GpuReading(self.share, 0)}


class Slots:
    """What a node would have been told."""

    def __init__(self, count: int = 3) -> None:
        self.stopped: dict[int, str] = {}
        self.count = count
        self.is_at_work = True

    def preempt(self, slots: Iterable[int] | None, reason: str, grace_s: float) -> None:
        self.stopped |= dict.fromkeys(range(self.count) if slots is None else slots, reason)

    def allow(self, slots: Iterable[int] | None) -> None:
        for number in range(self.count) if slots is None else slots:
            self.stopped.pop(number, None)

    async def until(self, holds: Callable[[dict[int, str]], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds(self.stopped):
                await asyncio.sleep(0.005)


@pytest.fixture
def hand() -> Iterator[Hand]:
    hand = Hand()
    yield hand
    hand.end()


@pytest.fixture
def watched(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Watch, Slots]]]:
    made: list[Watch] = []

    def start(*sensors: Sensor, **more: Any) -> tuple[Watch, Slots]:
        monkeypatch.setattr(Finder, "__call__", lambda self: [hand, *sensors])
        slots = Slots()
        made.append(Watch(slots, LENDING, **more))
        made[-1].start()
        return made[-1], slots

    yield start
    hand.blocks.set()
    for one in made:
        one.close()


async def test_nothing_runs_before_the_first_look_then_input_stops_all(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand
) -> None:
    hand.blocks.clear()
    watch, slots = watched()
    assert set(slots.stopped) == {0, 1, 2}
    assert watch.status()["paused"]
    hand.blocks.set()
    await slots.until(lambda stopped: not stopped)
    hand.touch()
    await slots.until(lambda stopped: stopped == dict.fromkeys(range(3), "hand used 0 s ago"))
    status = watch.status()
    assert status["paused"]
    assert status["reason"].startswith("hand used")
    assert status["devices"]["cpu"]["paused"]
    assert status["readings"]["inputs"][0]["source"] == "hand"


async def test_the_owners_word_holds_at_once_and_until_it_is_taken_back(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand
) -> None:
    watch, slots = watched()
    await slots.until(lambda stopped: not stopped)
    watch.pause()
    assert len(slots.stopped) == 3
    assert watch.status()["paused_by_owner"]
    watch.resume()
    await slots.until(lambda stopped: not stopped)
    watch.pause(7200)
    await slots.until(lambda stopped: "by your word, for 2 h more" in stopped.values())
    assert watch.status()["resume_unix_s"] < inf
    watch.resume()
    await slots.until(lambda stopped: not stopped)


async def test_settings_are_in_force_at_once(watched: Callable[..., tuple[Watch, Slots]], hand: Hand) -> None:
    hand.idle_s = 100.0
    watch, slots = watched()
    await slots.until(lambda stopped: not stopped)
    watch.set_settings(LendingSettings(owner=OwnerSettings(idle_s=1e5, settle_s=0.0)))
    await slots.until(lambda stopped: len(stopped) == 3)
    watch.set_settings(LENDING)
    await slots.until(lambda stopped: not stopped)


@pytest.mark.slow
async def test_a_game_on_a_gpu_stops_the_slots_that_hold_it_and_it_is_given_to_nobody(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand
) -> None:
    held: dict[int, set[str]] = {0: set(), 1: {"GPU-1"}, 2: {"GPU-2"}}
    withheld: list[frozenset[str]] = []
    gpu = Gpu()
    _, slots = watched(gpu, slot_gpus=lambda: held, withhold=withheld.append)
    await slots.until(lambda stopped: not stopped)
    gpu.share = 0.9
    await slots.until(lambda stopped: stopped == {1: "another program uses 90% of the GPU"})
    assert withheld[-1] == {"GPU-1"}
    held[1] = set()
    await slots.until(lambda stopped: not stopped)
    assert withheld[-1] == {"GPU-1"}, "the slot may work without it"
    gpu.share = 0.0
    await slots.until(lambda _: withheld[-1] == frozenset())


async def test_sensors_that_hang_stop_everything(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "SILENT_AFTER_S", 0.1)
    watch, slots = watched()
    await slots.until(lambda stopped: not stopped)
    hand.blocks.clear()

    def checked(stopped: dict[int, str]) -> bool:
        watch.check()
        return stopped.get(0) == SILENT

    await slots.until(checked)
    assert watch.status()["reason"] == SILENT
    hand.blocks.set()
    await slots.until(lambda stopped: not stopped)


async def test_at_rest_looks_are_rare_and_work_that_begins_brings_one(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    decide = Watch._look

    def look(self: Watch, readings: Readings) -> float:
        looks.append(decide(self, readings))
        return looks[-1]

    monkeypatch.setattr(Watch, "_look", look)
    watch, slots = watched()
    await slots.until(lambda stopped: not stopped)
    slots.is_at_work = False
    watch.check()
    watch._sensing.wake()
    await slots.until(lambda _: looks and looks[-1] == NOTIFIED_REST_LOOK_S)
    # The owner came back, and no sensor told: work that comes finds out at once.
    hand.idle_s, count = 0.0, len(looks)
    watch.work_begins()
    await slots.until(lambda stopped: len(stopped) == 3)
    assert len(looks) == count + 1
    hand.idle_s = 1e6


async def test_who_asks_how_things_stand_is_told_what_is_seen_now(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, slots = watched()
    await slots.until(lambda stopped: not stopped)
    slots.is_at_work = False
    watch.check()
    watch._sensing.wake()
    await slots.until(lambda _: watch._next_look_s == NOTIFIED_REST_LOOK_S)
    hand.idle_s = 20.0
    monkeypatch.setattr(watch_module, "FRESH_S", 1e6)
    await watch.look_again()
    assert not watch.status()["paused"], "a moment ago all was well"
    monkeypatch.setattr(watch_module, "FRESH_S", 0.0)
    monkeypatch.setattr(watch_module, "LOOK_WAITS", 1000)
    await watch.look_again()
    assert watch.status()["reason"] == "hand used 20 s ago"


async def test_sensors_that_hang_when_work_begins_stop_it(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, slots = watched()
    await slots.until(lambda stopped: not stopped)
    slots.is_at_work = False
    watch.check()
    hand.blocks.clear()
    watch._sensing.wake()
    watch._next_look_s = 1e6
    watch.work_begins()
    monkeypatch.setattr(watch_module, "SILENT_AFTER_S", 0.1)

    def checked(stopped: dict[int, str]) -> bool:
        watch.check()
        return stopped.get(0) == SILENT

    await slots.until(checked)
    hand.blocks.set()
    await slots.until(lambda stopped: not stopped)


class Muttering(Hand):
    """Wakes the thread for nothing, and then has news."""

    name = "muttering"

    def __init__(self) -> None:
        super().__init__()
        self.heard = 0

    def news(self) -> bool:
        self.heard += 1
        return b"!" in os.read(self.out, 1)


async def test_what_is_no_news_keeps_nobody_from_hearing_the_next(
    watched: Callable[..., tuple[Watch, Slots]], hand: Hand
) -> None:
    muttering = Muttering()
    try:
        _, slots = watched(muttering)
        await slots.until(lambda stopped: not stopped)
        os.write(muttering.into, b"..")
        async with asyncio.timeout(DEADLINE_S):
            while muttering.heard < 2:
                await asyncio.sleep(0.005)
        slots.is_at_work = False
        muttering.touch()
        await slots.until(lambda stopped: len(stopped) == 3)
    finally:
        muttering.blocks.set()


# ------------------------------------------------------------ the thread, step by step


def steps(*sensors: Sensor) -> tuple[Sensing, list[Readings]]:
    seen: list[Readings] = []

    def look(readings: Readings) -> float:
        seen.append(readings)
        return 1.0

    return Sensing(lambda: list(sensors), LENDING, look), seen


def test_a_sensor_that_fails_says_so_and_is_opened_again(hand: Hand) -> None:
    sensing, seen = steps(hand)
    sensing.step()
    hand.fault = Failed("the hand cannot be seen: switch the light on")
    hand.retry_s = 0.0
    sensing.step()
    assert seen[-1].inputs == (Input("hand", None),)
    assert seen[-1].troubles == ("the hand cannot be seen: switch the light on",)
    hand.fault = None
    sensing.step()
    assert seen[-1].inputs[0].idle_s == 1e6
    assert seen[-1].troubles == ()
    assert (hand.opened, hand.closed) == (2, 1)


def test_a_sensor_that_breaks_is_unknown_and_one_that_is_absent_is_nothing(hand: Hand) -> None:
    sensing, seen = steps(hand)
    hand.fault = ZeroDivisionError("a bug")
    sensing.step()
    assert seen[-1].inputs == (Input("hand", None),)
    assert seen[-1].troubles == ("a bug",)
    hand.fault, hand.absent_s = Absent(), 1e6
    sensing.set_settings(LENDING)
    sensing._due_s["hand"] = 0.0
    sensing.step()
    assert seen[-1].inputs == ()
    assert seen[-1].troubles == ()
    opened = hand.opened
    sensing.step()
    assert hand.opened == opened, "it is not asked again before its time"


def test_a_sensor_that_is_found_no_more_is_closed(hand: Hand) -> None:
    found: list[Sensor] = [hand]
    seen: list[Readings] = []

    def look(readings: Readings) -> float:
        seen.append(readings)
        return 1.0

    sensing = Sensing(lambda: list(found), LENDING, look)
    sensing.step()
    assert seen[-1].inputs
    found.clear()
    sensing.set_settings(LENDING)
    sensing.step()
    assert seen[-1].inputs == ()
    assert hand.closed == 1


def test_this_machine_as_it_is_has_readings(quiet_environment: object) -> None:
    """All sensors of this machine, whatever it is: none breaks, and what cannot be read has words."""
    seen: list[Readings] = []

    def look(readings: Readings) -> float:
        seen.append(readings)
        return 1.0

    sensing = Sensing(Finder(LENDING), LENDING, look)
    sensing.step()
    assert 0.0 <= (seen[-1].foreign_cpu_share or 0.0) <= 1.0
    assert seen[-1].on_battery in (True, False, None)
    assert all(len(words) > 10 for words in seen[-1].troubles)
    for name in list(sensing._open):
        sensing._close(name)


def test_what_one_sensor_cannot_tell_is_not_said_where_another_tells_all(hand: Hand) -> None:
    """A GNOME whose compositor has no idle protocol, and says on D-Bus what there is to say."""

    class Other(Hand):
        name = "other hand"

    other = Other()
    try:
        other.fault, other.retry_s = Failed("that one tells nothing"), 0.0
        sensing, seen = steps(hand, other)
        sensing.step()
        assert seen[-1].troubles == ()
        hand.fault, hand.retry_s = Failed("nor this one"), 0.0
        sensing.step()
        assert set(seen[-1].troubles) == {"that one tells nothing", "nor this one"}
    finally:
        other.end()
