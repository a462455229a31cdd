"""The owner's policy: what it says in each case, and what must hold in every case."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fallow.core.owner_hours import is_open, minutes_to_open, when_open
from fallow.core.owner_policy import CPU, Decision, ManualPause, OwnerState, look, span_words
from fallow.core.owner_readings import GpuReading, Input, Readings, Session
from fallow.model.lending import HeatSettings, Hours, LendingSettings, OwnerSettings, PriceSettings

DAY = 24 * 60
WEEKNIGHTS = Hours((0, 1, 2, 3, 4), 18 * 60, 8 * 60)
GPU = "GPU-1"


def away(idle_s: float = 10_000.0, **more: Any) -> Readings:
    return Readings(inputs=(Input("keyboard or mouse", idle_s),), **more)


class Watched:
    """A machine over virtual time."""

    def __init__(self, lending: LendingSettings | None = None, **owner: Any) -> None:
        self.settings = lending or LendingSettings(owner=OwnerSettings(**owner))
        self.state = OwnerState()
        self.now_s = 100_000.0

    def look(self, readings: Readings, after_s: float = 0.0, minute: int = 0) -> Decision:
        self.now_s += after_s
        self.state, decision = look(self.state, readings, self.settings, self.now_s, minute)
        return decision

    def run(self, readings: Readings, for_s: float, minute: int = 0) -> Decision:
        """Look as often as the policy wants to."""
        end_s = self.now_s + for_s
        decision = self.look(readings, minute=minute)
        while self.now_s < end_s:
            decision = self.look(readings, min(decision.next_look_s, end_s - self.now_s), minute)
        return decision


def test_an_idle_machine_works_at_the_first_look() -> None:
    assert Watched().look(away()).paused == ""


def test_input_pauses_and_says_what_was_used_and_when() -> None:
    machine = Watched()
    machine.look(away())
    assert machine.look(away(20.0), 1.0).paused == "keyboard or mouse used 20 s ago"
    assert machine.run(away(179.0), 158.0).paused
    assert not machine.look(away(181.0), 3.0).paused


def test_nothing_that_tells_of_input_is_busy_with_words_that_help() -> None:
    machine = Watched()
    for readings in (Readings(), Readings(inputs=(Input("keyboard", None), Input("XWayland", 1e6, proves=False)))):
        reason = machine.look(readings, 1.0).paused
        assert "owner.watch = false" in reason
        assert "/dev/input" in reason
    assert not Watched(watch=False).look(Readings()).paused
    assert not Watched().look(Readings(nobody="no keyboard, no display, no session")).paused


def test_one_working_sensor_is_enough_and_the_latest_input_counts() -> None:
    machine = Watched()
    broken = Input("the desktop", None)
    assert not machine.look(Readings(inputs=(broken, Input("keyboard", 500.0)))).paused
    inside = Input("X11 inside Wayland", 3.0, proves=False)
    assert machine.look(Readings(inputs=(inside, Input("keyboard", 500.0))), 1.0).paused


def test_a_sensor_that_starts_anew_does_not_make_input_forgotten() -> None:
    machine = Watched()
    assert machine.look(away(1.0)).paused
    assert machine.look(away(900.0), 1.0).paused == "keyboard or mouse used 2 s ago"


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"on_battery": True}, "on battery"),
    ({}, {"on_battery": None}, "whether it runs on battery cannot be read"),
    ({}, {"metered": True}, "the network is metered"),
    ({}, {"full_screen": "vlc"}, "vlc fills the screen"),
    ({}, {"screen_on": "firefox"}, "firefox keeps the screen on"),
    ({}, {"screen_on": None}, "whether a film or a talk keeps the screen on cannot be read"),
    ({}, {"foreign_cpu_share": 0.4}, "other programs use 40% of the CPU"),
    ({}, {"foreign_cpu_share": None}, "how much other programs use the CPU cannot be read"),
    ({"exclusive_programs": ("steam",)}, {"programs": ("steam", "vim")}, "steam runs"),
    ({"exclusive_programs": ("steam",)}, {"programs": None}, "which programs run cannot be read"),
    ({}, {"sessions": None}, "who is logged in cannot be read"),
    ({}, {"sessions": (Session("ann", True, 5.0),)}, "ann typed 5 s ago, logged in from elsewhere"),
    ({}, {"sessions": (Session("ann", True, None),)}, "ann is logged in from elsewhere, and whether they type"),
    ({}, {"sessions": (Session("bob", False, 5.0),)}, "the session of bob used 5 s ago"),
    ({}, {"sessions": (Session("bob", False, None),)}, "bob is logged in here, and whether they use keyboard"),
    ({}, {"cpu_temperature_c": 91.0}, "the CPU is at 91 C (limit 90 C)"),
    ({}, {"cpu_temperature_c": None}, "the temperature of the CPU cannot be read"),
]


@pytest.mark.parametrize(("owner", "readings", "words"), CASES)
def test_each_cause_pauses_in_words(owner: dict[str, Any], readings: dict[str, Any], words: str) -> None:
    machine = Watched(**owner)
    assert machine.look(away()).paused == ""
    assert machine.look(away(**readings), 1.0).paused.startswith(words)


ALLOWED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"on_battery": True}, {"on_battery": True}),
    ({"on_metered": True}, {"metered": True}),
    ({"full_screen": False}, {"full_screen": "vlc"}),
    ({"full_screen": False}, {"screen_on": "firefox"}),
    ({"remote_sessions": False}, {"sessions": (Session("ann", True, 5.0),)}),
    ({}, {"sessions": (Session("bob", False, 5.0, active=False),)}),
    ({}, {"sessions": (Session("me", False, None, seen_by_input=True),)}),
    ({}, {"sessions": (Session("ann", True, 500.0),)}),
    ({}, {"programs": ("steam",)}),
    ({"watch": False}, {"full_screen": "vlc", "sessions": None}),
]


@pytest.mark.parametrize(("owner", "readings"), ALLOWED)
def test_what_the_owner_allows_does_not_pause(owner: dict[str, Any], readings: dict[str, Any]) -> None:
    assert Watched(**owner).look(away(**readings)).paused == ""


def test_what_it_still_waits_for_is_said_and_not_what_is_over() -> None:
    machine = Watched(settle_s=30.0)
    assert machine.look(away()).paused == ""
    assert machine.look(away(full_screen="game"), 1.0).paused == "game fills the screen"
    machine.state = replace(machine.state, pause=ManualPause(machine.now_s + 7200.0))
    assert machine.look(away(), 1.0).paused == "by your word, for 2 h more"
    machine.state = replace(machine.state, pause=None)
    assert machine.look(away(), 1.0).paused == "until a moment ago: game fills the screen (goes on in 28 s)"
    assert machine.look(away(), 28.5).paused == ""


def test_load_has_two_thresholds_and_settles() -> None:
    machine = Watched(settle_s=30.0)
    assert not machine.look(away(foreign_cpu_share=0.24)).paused
    assert machine.look(away(foreign_cpu_share=0.26), 1.0).paused
    assert machine.run(away(foreign_cpu_share=0.20), 100.0).paused.startswith("other programs use 20%")
    assert machine.look(away(foreign_cpu_share=0.10), 1.0).paused.startswith(
        "until a moment ago: other programs use 20%"
    )
    assert machine.run(away(foreign_cpu_share=0.10), 28.5).paused
    assert not machine.run(away(foreign_cpu_share=0.20), 2.0).paused


def test_heat_has_two_thresholds() -> None:
    lending = LendingSettings(heat=HeatSettings(cpu_limit_c=90.0, resume_below_c=80.0))
    machine = Watched(lending)
    assert not machine.look(away(cpu_temperature_c=89.0)).paused
    assert machine.look(away(cpu_temperature_c=90.0), 1.0).paused
    assert machine.look(away(cpu_temperature_c=82.0), 1.0).paused
    assert not machine.look(away(cpu_temperature_c=79.0), 1.0).paused
    assert not machine.look(away(cpu_temperature_c=82.0), 1.0).paused


def test_a_game_on_one_gpu_pauses_that_gpu_alone() -> None:
    machine = Watched(settle_s=30.0)
    free, used = GpuReading(0.0, 0), GpuReading(0.3, 0)
    decision = machine.look(away(gpus={"GPU-1": used, "GPU-2": free}))
    assert {name: one.allowed for name, one in decision.devices.items()} == {CPU: True, "GPU-1": False, "GPU-2": True}
    assert decision.paused == ""
    assert decision.devices["GPU-1"].reason == "another program uses 30% of the GPU"
    held = GpuReading(0.0, 2 << 30)
    assert "2.1 GB" in machine.look(away(gpus={"GPU-1": held}), 1.0).devices["GPU-1"].reason
    unread = GpuReading(None, None)
    assert "cannot be read" in machine.look(away(gpus={"GPU-1": unread}), 1.0).devices["GPU-1"].reason
    low = GpuReading(0.07, 0)
    assert not machine.look(away(gpus={"GPU-1": low}), 1.0).devices["GPU-1"].allowed
    machine.run(away(gpus={"GPU-1": free}), 31.0)
    assert machine.look(away(gpus={"GPU-1": low}), 0.5).devices["GPU-1"].allowed


def test_gpus_have_an_idle_time_and_programs_of_their_own() -> None:
    machine = Watched(idle_s=60.0, gpu_idle_s=600.0, gpu_exclusive_programs=("blender",))
    decision = machine.look(away(100.0, gpus={GPU: GpuReading()}))
    assert decision.cpu.allowed
    assert not decision.devices[GPU].allowed
    decision = machine.run(away(1000.0, gpus={GPU: GpuReading()}, programs=("blender",)), 601.0)
    assert decision.devices[GPU].reason == "blender runs"


def test_hours() -> None:
    machine = Watched(hours=(WEEKNIGHTS,))
    assert machine.look(away(), minute=17 * 60).paused == "outside the hours (next 18:00)"
    assert not machine.look(away(), 1.0, minute=18 * 60).paused
    assert not machine.look(away(), 1.0, minute=DAY + 7 * 60 + 59).paused
    assert machine.look(away(), 1.0, minute=5 * DAY + 8 * 60).paused == "outside the hours (next Mon 18:00)"


def test_price() -> None:
    lending = LendingSettings(price=PriceSettings(source="/run/price", limit_per_kwh=0.2))
    machine = Watched(lending)
    assert machine.look(away()).paused == "the price of electricity cannot be read"
    assert machine.look(away(price_per_kwh=0.35), 1.0).paused == "electricity costs 0.35 for a kWh (limit 0.2)"
    assert not machine.look(away(price_per_kwh=0.2), 1.0).paused


def test_the_owners_word_holds_until_its_time_and_ends_at_once() -> None:
    machine = Watched()
    machine.state = replace(machine.state, pause=ManualPause(machine.now_s + 7200))
    assert machine.look(away()).paused == "by your word, for 2 h more"
    assert machine.run(away(), 7199.0).paused == "by your word, for 1 s more"
    assert not machine.run(away(), 1.0).paused
    machine.state = replace(machine.state, pause=ManualPause(inf))
    assert machine.look(away()).paused == "by your word"
    machine.state = replace(machine.state, pause=None)
    assert not machine.look(away(), 1.0).paused


def test_since_is_the_last_change() -> None:
    machine = Watched()
    machine.look(away())
    machine.run(away(), 100.0)
    started = machine.now_s + 1.0
    machine.look(away(1.0), 1.0)
    assert machine.run(away(5.0), 30.0).cpu.since_s == started


def test_a_jump_of_the_clock_is_the_owners_return_until_read_anew() -> None:
    machine = Watched(settle_s=30.0)
    machine.run(away(), 10.0)
    assert machine.look(away(), 3600.0).paused == "the machine slept or stood still a moment ago"
    assert machine.run(away(), 29.0).paused.startswith("until a moment ago: the machine slept")
    assert not machine.run(away(), 1.1).paused
    assert machine.look(away(), -5000.0).paused
    assert not machine.run(away(), 31.0).paused


def test_a_thousand_returns_stop_at_the_first_reading() -> None:
    """At whatever moment the owner comes back: the first look after it stops all devices, and looks are so close that
    the stop, with its grace, stays under two seconds."""
    machine = Watched(idle_s=180.0)
    gpus = {GPU: GpuReading()}
    worst_s = 0.0
    for number in range(1000):
        idle_s = 200.0 + number % 97
        decision = machine.run(away(idle_s, gpus=gpus), 181.0)
        assert all(one.allowed for one in decision.devices.values())
        late_s = decision.next_look_s * (number % 100 + 1) / 100
        decision = machine.look(away(late_s, gpus=gpus), decision.next_look_s)
        assert not any(one.allowed for one in decision.devices.values())
        worst_s = max(worst_s, late_s)
    assert worst_s + machine.settings.owner.grace_s < 2.0


def test_where_input_notifies_looks_are_seldom_and_where_nothing_runs_more_so() -> None:
    machine = Watched()
    assert machine.look(Readings(inputs=(Input("keyboard", 1e6, notifies=True),))).next_look_s == 1.0
    assert machine.look(away(1.0), 1.0).next_look_s == 60.0, "it cannot end before"
    assert machine.look(away(1.0, foreign_cpu_share=0.9)).next_look_s == 60.0, "nor does this one alone end it"
    assert Watched().look(away(1e6, foreign_cpu_share=0.9)).next_look_s == 10.0, "when it ends nobody knows"
    assert machine.run(away(1e6), 178.0).paused
    assert machine.look(away(1e6)).next_look_s == pytest.approx(1.0)


def test_where_nothing_of_the_pools_runs_looks_are_rare_and_stop_all_the_same() -> None:
    machine = Watched()
    for notifies, at_rest_s in ((True, 60.0), (False, 30.0)):
        seen = Readings(inputs=(Input("keyboard", 1e6, notifies=notifies),))
        _, decision = look(machine.state, seen, machine.settings, machine.now_s, 0, at_work=False)
        assert decision.paused == ""
        assert decision.next_look_s == at_rest_s
    _, decision = look(machine.state, away(1.0), machine.settings, machine.now_s, 0, at_work=False)
    assert decision.paused == "keyboard or mouse used 1 s ago"


# ------------------------------------------------------------ what holds in every case

optional_share = st.one_of(st.none(), st.floats(0.0, 1.0))
situations = st.builds(
    Readings,
    inputs=st.lists(
        st.builds(
            Input,
            source=st.sampled_from(("keyboard", "mouse")),
            idle_s=st.one_of(st.none(), st.floats(0.0, 2000.0)),
            proves=st.booleans(),
            notifies=st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
    full_screen=st.sampled_from(("", "", "vlc")),
    screen_on=st.sampled_from(("", "", "firefox", None)),
    foreign_cpu_share=optional_share,
    on_battery=st.sampled_from((False, False, True, None)),
    cpu_temperature_c=st.sampled_from((0.0, 50.0, 85.0, 95.0)),
    gpus=st.dictionaries(
        st.sampled_from(("GPU-1", "GPU-2")),
        st.builds(GpuReading, optional_share, st.one_of(st.none(), st.integers(0, 4 << 30))),
        max_size=2,
    ),
)
steps = st.lists(st.tuples(st.floats(0.0, 60.0), situations), min_size=1, max_size=40)


@given(steps)
@hypothesis_settings(max_examples=150, deadline=None)
def test_never_allowed_within_idle_s_of_input_nor_without_proof(history: list[tuple[float, Readings]]) -> None:
    machine = Watched(idle_s=120.0, gpu_idle_s=240.0)
    input_s = -inf
    for after_s, readings in history:
        decision = machine.look(readings, after_s)
        seen = [machine.now_s - one.idle_s for one in readings.inputs if one.idle_s is not None]
        input_s = max(input_s, *seen, -inf)
        proved = any(one.proves and one.idle_s is not None for one in readings.inputs)
        for name, device in decision.devices.items():
            idle_s = 120.0 if name == CPU else 240.0
            assert not device.allowed or (proved and machine.now_s - input_s >= idle_s - 1e-6)
            assert device.allowed == (not device.reason)
        assert 0 < decision.next_look_s <= 60.0


@given(steps)
@hypothesis_settings(max_examples=150, deadline=None)
def test_no_flapping(history: list[tuple[float, Readings]]) -> None:
    """Between a stop for anything but input, and the next start, lies the time to settle."""
    machine = Watched(settle_s=30.0)
    stopped_s: dict[str, float] = {}
    caused_s: dict[str, float] = {}
    for after_s, readings in history:
        before = machine.state.devices
        decision = machine.look(readings, after_s)
        for name, device in decision.devices.items():
            was = before.get(name)
            if was is not None and was.allowed and not device.allowed:
                stopped_s[name] = machine.now_s
            if set(machine.state.devices[name].causes) - {"input", "heat"}:
                caused_s[name] = machine.now_s
            if device.allowed:
                assert machine.now_s - caused_s.get(name, -inf) >= 30.0 - 1e-6
                if was is not None and not was.allowed and "input" not in was.causes and "heat" not in was.causes:
                    assert machine.now_s - stopped_s.get(name, -inf) >= 30.0 - 1e-6


@given(steps, st.floats(20.0, 1e6))
@hypothesis_settings(max_examples=80, deadline=None)
def test_after_a_jump_nothing_works_until_it_is_read_anew(history: list[tuple[float, Readings]], jump_s: float) -> None:
    machine = Watched()
    for after_s, readings in history:
        machine.look(readings, min(after_s, 5.0))
    decision = machine.look(history[-1][1], jump_s)
    assert not any(device.allowed for device in decision.devices.values())


@given(
    st.lists(
        st.builds(
            Hours,
            days=st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple),
            start_minute=st.integers(0, DAY - 1),
            stop_minute=st.integers(0, DAY - 1),
        ),
        max_size=3,
    ),
    st.integers(0, 7 * DAY - 1),
)
def test_the_hours_open_when_they_say(hours: list[Hours], minute: int) -> None:
    wait = minutes_to_open(hours, minute)
    assert wait is not None
    assert is_open(hours, (minute + wait) % (7 * DAY))
    assert wait == 0 or not is_open(hours, (minute + wait - 1) % (7 * DAY))


def test_hours_in_words() -> None:
    assert when_open((Hours((), 0, 0),), 5) == "never"
    assert when_open((Hours((0,), 60, 120),), 0) == "01:00"
    assert when_open((Hours((0,), 60, 120),), 130) == "Mon 01:00"


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (20, "20 s"), (300, "5 min"), (7200, "2 h"), (7830, "2 h 10 min")]
)
def test_spans_in_words(seconds: float, words: str) -> None:
    assert span_words(seconds) == words
